"""Checks of the samplers of p^alpha against the enumerated power.

One move of a chain is exact, on any model. Whole chains and populations run through the real engine, on one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fastflow.data.trajectory import Prompt
from fastflow.models.packed import PackedModel
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.power.mcmc import Chain, Form
from fastflow.rollout.power.sampler import PowerSampler
from fastflow.rollout.power.smc import Population
from fastflow.rollout.power.walk import Tail
from fastflow.rollout.sampler import SamplingParams, requests_for
from fastflow.verify.check import Check
from fastflow.verify.exact import SequenceSpace, policy_distribution
from fastflow.verify.one_move import after_one_move, power, scored_responses

# What holds for any model: one move from p^alpha leaves p^alpha, on the model of the given seed.
KEPT_ALPHA = 4.0  # that of fastflow evaluate
KEPT_SPACE = SequenceSpace(tokens=3, limit=4)
KEPT_BOUND = 1e-9  # total variation; summed in float64

# What holds for one model: how close the samplers come.
ALPHA = 2.0
BOUND = 0.01  # total variation
FAR = 0.1  # total variation that the published chain exceeds
SPACE = SequenceSpace(tokens=2, limit=3)
MODEL_SEED = 3  # a model on which 10 moves suffice: after them the exact chain's distribution is 0.001 from its end
BLOCK = 2  # tokens: the limit is no multiple of it
CHAINS, PUBLISHED_CHAINS, STEPS = 10_000, 2_000, 10
PARTICLES, POPULATIONS = (1, 4, 64), (4_000, 2_000, 250)
SCOPE = (
    f"MCMC and Power-SMC at alpha {ALPHA:g} ran on one model of {len(SPACE)} responses, whatever the seed. How many "
    "moves or particles suffice depends on the model: no figure here promises that they do on yours."
)

MakeModels = Callable[[SequenceSpace, int], tuple[PackedModel, PackedModel]]


def power_checks(make_models: MakeModels, seed: int) -> list[Check]:
    """Check that p^alpha is where an exact chain stays, and how close the samplers come to it on one model."""
    return [kept_check(make_models, seed), *reached_checks(make_models, seed)]


def kept_check(make_models: MakeModels, seed: int) -> Check:
    """Compare p^alpha with the distribution one exact move later: they are equal, whatever the model.

    A chain that never moves passes, too. It fails in `reached_checks`.
    """
    policy, _ = make_models(KEPT_SPACE, seed)
    responses = scored_responses(policy, _prompt(KEPT_SPACE), KEPT_SPACE, KEPT_ALPHA)
    target = power(responses, KEPT_ALPHA)

    def moved(form: Form) -> float:
        return _variation(after_one_move(target, responses, alpha=KEPT_ALPHA, form=form), target)

    exact, published = moved("exact"), moved("published")
    return Check(f"MCMC exact alpha {KEPT_ALPHA:g}, one move: TV", exact, KEPT_BOUND, "", f"published {published:.2f}")


def reached_checks(make_models: MakeModels, seed: int) -> list[Check]:
    """Run the samplers on one random transformer, and compare their responses with the enumerated p^alpha.

    The published chain passes where it is far from p^alpha: it must miss what the exact one meets.
    """
    policy, _ = make_models(SPACE, MODEL_SEED)
    prompt = _prompt(SPACE)
    target = torch.softmax(ALPHA * policy_distribution(policy, prompt, SPACE), 0).numpy()
    exact = chain_distance(policy, prompt, target, "exact", CHAINS, seed)
    published = chain_distance(policy, prompt, target, "published", PUBLISHED_CHAINS, seed)
    pairs = zip(PARTICLES, POPULATIONS, strict=True)
    smc = [population_distance(policy, prompt, target, *pair, seed) for pair in pairs]
    name = f"alpha {ALPHA:g}"
    return [
        Check(f"MCMC exact {name}, {STEPS} moves: TV", exact, BOUND, "", f"tempered {smc[0]:.2g}"),
        Check(f"MCMC published {name}: {FAR:g} / TV", FAR / published, 1.0, "", f"misses: {published:.2g}"),
        Check(f"Power-SMC {PARTICLES[-1]} {name}: TV", smc[-1], BOUND, "", f"with {PARTICLES[1]}: {smc[1]:.2g}"),
    ]


def chain_distance(policy: PackedModel, prompt: Prompt, target: np.ndarray, form: Form, count: int, seed: int) -> float:
    """Compute the total variation between the ends of `count` chains and the target (n,)."""
    sampler = PowerSampler.mcmc(_engine(policy), policy, alpha=ALPHA, block=BLOCK, steps=STEPS, form=form)
    requests = requests_for([prompt], count, seed=seed, step=0)
    (ended,) = sampler.walk(requests, SamplingParams(max_response_tokens=SPACE.limit))
    responses = [result.response for result, _ in ended if isinstance(result, Chain)]
    return _distance(responses, np.full(len(responses), 1 / len(responses)), target)


def population_distance(
    policy: PackedModel, prompt: Prompt, target: np.ndarray, particles: int, count: int, seed: int
) -> float:
    """Compute the total variation between the target (n,) and the mean of `count` weighted populations.

    That mean is the distribution of a response drawn by weight, without the noise of the draw.
    """
    sampler = PowerSampler.smc(_engine(policy), policy, alpha=ALPHA, block=1, particles=particles)
    requests = requests_for([prompt], count, seed=seed, step=0)
    (ended,) = sampler.walk(requests, SamplingParams(max_response_tokens=SPACE.limit))
    populations = [result for result, _ in ended if isinstance(result, Population)]
    responses = [response for result in populations for response in result.responses]
    return _distance(responses, np.concatenate([result.weights for result in populations]) / count, target)


def _engine(policy: PackedModel) -> LocalSampler:
    return LocalSampler(policy, eos_ids=[SPACE.eos_id], max_sequences=8192)


def _distance(responses: Sequence[Tail], weights: np.ndarray, target: np.ndarray) -> float:
    """A response that was cut short of the limit is not in the space: all of its weight (n,) is missing there."""
    places = np.array([SPACE.place.get(tuple(response.ids.tolist()), len(SPACE)) for response in responses])
    shares = np.bincount(places, weights, minlength=len(SPACE) + 1)
    return _variation(shares, target)


def _variation(shares: np.ndarray, target: np.ndarray) -> float:
    """Between shares (n + 1,) and the target (n,), which has nothing beyond the space."""
    return float(np.abs(shares - np.append(target, 0.0)).sum() / 2)


def _prompt(space: SequenceSpace) -> Prompt:
    return Prompt(np.array([space.eos_id]), source="fastflow verify")
