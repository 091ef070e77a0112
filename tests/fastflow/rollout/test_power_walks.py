"""Chains and populations for p^alpha on a table of next-token probabilities, in float64, against enumeration."""

from __future__ import annotations

import bisect
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastflow.data.trajectory import Prompt
from fastflow.rollout.power.mcmc import chain, log_acceptance
from fastflow.rollout.power.smc import effective_size, log_increment, normalised, population, systematic
from fastflow.rollout.power.walk import Ask, Tail, run_walks, seed_of
from fastflow.verify.exact import SequenceSpace, table_distribution
from fastflow.verify.one_move import after_one_move, power

SPACE = SequenceSpace(tokens=2, limit=3)
PROMPT = Prompt(np.array([SPACE.eos_id]))


class Table:
    """Proposes from a table (prefixes, V) of next-token log-probs at temperature 1 / alpha."""

    def __init__(self, alpha: float, seed: int = 0, space: SequenceSpace = SPACE):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(len(space.prefixes), space.vocab_size, generator=generator, dtype=torch.float64)
        self.space = space
        self.log_p = torch.log_softmax(logits, -1).numpy()
        self.log_q = torch.log_softmax(alpha * logits, -1).numpy()
        self.target = torch.softmax(alpha * table_distribution(logits, space), 0).numpy()
        self.cumulative = np.exp(self.log_q).cumsum(1).tolist()
        self.row = {prefix: index for index, prefix in enumerate(space.prefixes)}
        self.asked: list[Ask] = []

    def propose(self, asks):
        self.asked += [ask for _, ask in asks]
        return [(self.draw(ask), len(ask.prefix)) for _, ask in asks]

    def draw(self, ask: Ask) -> Tail:
        rng, ids = random.Random(ask.seed), []
        while len(ids) < ask.limit and self.space.eos_id not in ids:
            row = self.row[(*ask.prefix.tolist(), *ids)]
            ids.append(bisect.bisect(self.cumulative[row], rng.random() * self.cumulative[row][-1]))
        return self.tail(tuple(ask.prefix.tolist()), tuple(ids))

    def tail(self, prefix: tuple[int, ...], ids: tuple[int, ...]) -> Tail:
        rows = [self.row[prefix + ids[:t]] for t in range(len(ids))]
        return Tail(
            np.array(ids, dtype=np.int64),
            self.log_p[rows, list(ids)],
            self.log_q[rows, list(ids)],
            ids[-1] == self.space.eos_id,
        )

    def states(self, form) -> list[tuple[int, ...]]:
        """What a chain may hold: for `published` also responses cut short of the limit."""
        cut = [prefix for prefix in self.space.prefixes if prefix] if form == "published" else []
        return [*self.space.responses, *cut]

    def start(self, form) -> np.ndarray:
        """Probabilities (n,) of the states under the proposal."""
        start = np.zeros(len(self.states(form)))
        start[: len(self.space)] = [math.exp(self.tail((), x).log_q.sum()) for x in self.space.responses]
        return start

    def transition(self, alpha: float, form) -> np.ndarray:
        """The matrix (n, n) of one move, by summing over positions and tails."""
        states = self.states(form)
        matrix = np.zeros((len(states), len(states)))
        for i, x in enumerate(states):
            room = self.space.limit if form == "exact" else len(x)
            for j, y in enumerate(states):
                if len(y) > room or (len(y) < room and y[-1] != self.space.eos_id):
                    continue
                for kept in range(min(len(x), len(y))):
                    if y[:kept] == x[:kept]:
                        current, proposed = self.tail(x[:kept], x[kept:]), self.tail(y[:kept], y[kept:])
                        ratio = log_acceptance(current, proposed, kept=kept, alpha=alpha, form=form)
                        matrix[i, j] += math.exp(proposed.log_q.sum() + min(0.0, ratio)) / len(x)
            matrix[i, i] += 1 - matrix[i].sum()
        return matrix


def test_the_acceptance_ratio_by_hand():
    """Both responses keep one token. Tails of two tokens and of one, alpha 2."""
    current = Tail(np.array([3, 4]), np.log([0.5, 0.25]), np.log([0.6, 0.2]), ended=True)
    proposed = Tail(np.array([5]), np.log([0.125]), np.log([0.1]), ended=True)
    exact = (0.125**2 * 0.6 * 0.2 * 3) / ((0.5 * 0.25) ** 2 * 0.1 * 2)
    assert log_acceptance(current, proposed, kept=1, alpha=2, form="exact") == pytest.approx(math.log(exact))
    overlap = (0.125**2 * 0.6) / (0.5**2 * 0.1)
    assert log_acceptance(current, proposed, kept=1, alpha=2, form="published") == pytest.approx(math.log(overlap))


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0.3, 6), seed=st.integers(0, 1000), limit=st.integers(1, 3))
@example(alpha=6.0, seed=684, limit=3)  # the slowest of all: a gap of 1.8e-4
def test_the_exact_chain_keeps_the_power_and_is_in_detailed_balance(alpha, seed, limit):
    table = Table(alpha, seed, SequenceSpace(tokens=2, limit=limit))
    matrix = table.transition(alpha, "exact")
    np.testing.assert_allclose(table.target @ matrix, table.target, atol=1e-12)
    flow = table.target[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    reached = np.linalg.matrix_power(matrix, 2**20)  # where the power is steep, thousands of moves are refused
    np.testing.assert_allclose(reached, np.tile(table.target, (len(matrix), 1)), atol=1e-8)


@pytest.mark.parametrize("form", ["exact", "published"])
def test_chains_do_what_their_matrix_says(form):
    """After 3 moves under the full limit, before they have settled."""
    table = Table(3.0)
    expected = table.start(form) @ np.linalg.matrix_power(table.transition(3.0, form), 3)
    assert distance(expected[: len(SPACE)], table.target) > 0.05
    place = {state: index for index, state in enumerate(table.states(form))}
    ended = chains(table, 6000, alpha=3.0, block=3, steps=3, form=form)
    counts = np.bincount([place[tuple(r.response.ids.tolist())] for r, _ in ended], minlength=len(place))
    assert distance(counts / len(ended), expected) < 0.015
    if form == "published":
        assert counts[len(SPACE) :].sum() > 0  # a tail is cut at the present length


def test_published_chains_settle_elsewhere():
    table = Table(2.0)
    settled = table.start("published") @ np.linalg.matrix_power(table.transition(2.0, "published"), 2000)
    assert distance(settled[: len(SPACE)], table.target) + settled[len(SPACE) :].sum() / 2 > 0.2


@pytest.mark.parametrize("form", ["exact", "published"])
def test_verify_s_one_move_is_the_matrix(form):
    table = Table(3.0)
    responses = [table.tail((), ids) for ids in SPACE.responses]
    np.testing.assert_allclose(power(responses, 3.0), table.target)
    after = after_one_move(table.target, responses, alpha=3.0, form=form)
    expected = table.target @ table.transition(3.0, form)[: len(SPACE)]
    np.testing.assert_allclose(after[:-1], expected[: len(SPACE)], atol=1e-12)
    assert after[-1] == pytest.approx(expected[len(SPACE) :].sum())


def chains(table: Table, count: int, **options) -> list:
    walks = [(PROMPT, chain(seed, limit=SPACE.limit, **options)) for seed in range(count)]
    return run_walks(walks, table)


def frequencies(responses, space=SPACE, weights=None) -> np.ndarray:
    places = [space.place[tuple(response.ids.tolist())] for response in responses]
    return np.bincount(places, weights, minlength=len(space)) / (len(places) if weights is None else np.sum(weights))


def distance(p, q) -> float:
    return float(np.abs(p - q).sum() / 2)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_exact_chains_reach_the_power_in_any_blocks(block):
    table = Table(3.0, seed=3)
    ended = chains(table, 3000, alpha=3.0, block=block, steps=8, form="exact")
    assert distance(frequencies([result.response for result, _ in ended]), table.target) < 0.03
    assert distance(table.start("exact"), table.target) > 0.06  # so that the bound above says something


def test_at_alpha_one_the_target_is_the_model_itself():
    table = Table(1.0, seed=2)
    np.testing.assert_allclose(table.log_p, table.log_q)
    ended = chains(table, 2000, alpha=1.0, block=2, steps=3, form="exact")
    assert distance(frequencies([result.response for result, _ in ended]), table.target) < 0.03
    ended = run_walks([(PROMPT, population(s, alpha=1.0, limit=3, block=1, particles=4)) for s in range(50)], table)
    for result, _ in ended:
        assert result.resampled == 0
        np.testing.assert_allclose(result.weights, 0.25)


def test_a_response_that_ends_early_goes_on_under_the_full_limit():
    table = Table(2.0)
    ended = chains(table, 60, alpha=2.0, block=1, steps=4, form="exact")
    for result, _ in ended:
        assert result.moves % 4 == 0 and result.moves in (8, 12)  # ended in block 1 or 2, or came to the last
    limits = {ask.limit + len(ask.prefix) for ask in table.asked}
    assert limits == {1, 2, 3}


def test_published_stops_with_the_block_that_ends_it_and_never_grows_in_a_move():
    table = Table(2.0)
    for seed in range(40):
        table.asked.clear()
        ((result, cost),) = run_walks(
            [(PROMPT, chain(seed, alpha=2.0, limit=3, block=2, steps=5, form="published"))], table
        )
        assert result.moves in (5, 10) and result.accepted <= result.moves
        assert cost.sampled >= len(result.response) and cost.read == sum(len(ask.prefix) for ask in table.asked)
        if result.response.ended and len(result.response) <= 2 and result.moves == 5:
            assert all(len(ask.prefix) + ask.limit <= 2 for ask in table.asked)


def test_a_walk_depends_on_its_seed_alone():
    table = Table(2.0)
    together = chains(table, 8, alpha=2.0, block=2, steps=3, form="exact")
    for seed, (result, cost) in enumerate(together):
        ((alone, alone_cost),) = run_walks(
            [(PROMPT, chain(seed, alpha=2.0, limit=3, block=2, steps=3, form="exact"))], Table(2.0)
        )
        assert alone.response.ids.tolist() == result.response.ids.tolist() and alone_cost == cost


def test_weights_by_hand():
    """alpha 2, p = (.5, .3, .2): q is (.25, .09, .04) / .38, so that each token multiplies the weight by .38."""
    p = np.array([0.5, 0.3, 0.2])
    q = p**2 / (p**2).sum()
    for token in range(3):
        tail = Tail(np.array([token]), np.log(p[[token]]), np.log(q[[token]]))
        assert log_increment(tail, alpha=2) == pytest.approx(math.log(0.38))
    np.testing.assert_allclose(normalised(np.log([1.0, 3.0]) - 2000), [0.25, 0.75])
    assert effective_size(np.array([0.25, 0.75])) == pytest.approx(1 / (1 / 16 + 9 / 16))


@given(weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=20), uniform=st.floats(0, 1, exclude_max=True))
def test_systematic_resampling_takes_each_as_often_as_its_weight_says(weights, uniform):
    shares = np.array(weights) / np.sum(weights)
    counts = np.bincount(systematic(shares, uniform), minlength=len(shares))
    assert counts.sum() == len(shares)
    assert (np.abs(counts - shares * len(shares)) < 1 + 1e-9).all()


def smc_distance(table: Table, particles: int, count: int, block: int = 1) -> float:
    walks = [
        (PROMPT, population(seed, alpha=4.0, limit=SPACE.limit, block=block, particles=particles))
        for seed in range(count)
    ]
    total = np.zeros(len(SPACE))
    for result, _ in run_walks(walks, table):
        total += frequencies(result.responses, weights=result.weights)
    return distance(total / count, table.target)


@pytest.mark.parametrize("block", [1, 2])
def test_populations_come_closer_with_particles(block):
    table = Table(4.0, seed=5)
    one, many = smc_distance(table, 1, 4000, block), smc_distance(table, 64, 120, block)
    assert many < 0.03 < 0.06 < one


def test_the_chosen_response_follows_the_weights():
    table = Table(4.0, seed=5)
    walks = [(PROMPT, population(seed, alpha=4.0, limit=3, block=2, particles=16)) for seed in range(2000)]
    ended = run_walks(walks, table)
    assert distance(frequencies([result.response for result, _ in ended]), table.target) < 0.04
    assert any(result.resampled for result, _ in ended)
    assert all(result.weights.sum() == pytest.approx(1) for result, _ in ended)
    assert all(cost.sampled >= 16 for _, cost in ended)


def test_particles_that_ended_draw_no_more_tokens():
    table = Table(4.0, seed=5)
    run_walks([(PROMPT, population(0, alpha=4.0, limit=3, block=1, particles=32))], table)
    assert all(SPACE.eos_id not in ask.prefix for ask in table.asked)
    assert len({ask.seed for ask in table.asked}) == len(table.asked)


def test_tails_are_cut_and_joined():
    tail = Tail(np.array([1, 2, 3]), np.array([-1.0, -2, -3]), np.array([-4.0, -5, -6]), ended=True)
    joined = tail.first(1).then(tail.after(1))
    assert joined.ids.tolist() == [1, 2, 3] and joined.ended and not tail.first(2).ended and tail.first(3).ended
    assert joined.log_q.tolist() == [-4, -5, -6]
    with pytest.raises(ValueError, match="has ended"):
        tail.then(tail)
    rng = np.random.default_rng(0)
    seeds = [seed_of(rng) for _ in range(100)]
    assert len(set(seeds)) == 100 and min(seeds) >= 0 and max(seeds) < 2**63
