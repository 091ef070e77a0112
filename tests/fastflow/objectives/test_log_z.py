"""log_z: the group mean and the learned head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.data.packing import pack
from fastflow.objectives.log_z import LearnedLogZ, group_mean
from small_models import make_groups

WIDTH = 16


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), min_size=1, max_size=6), st.randoms())
def test_group_mean_centres_the_residuals_of_each_group(parts, random):
    pairs = [(value, number) for number, part in enumerate(parts) for value in part]
    random.shuffle(pairs)
    rest, group = (torch.tensor(column) for column in zip(*pairs, strict=True))
    rest = rest.double()
    residual = group_mean(rest, group) - rest  # log_z + length_scale * log pi - log_target
    for number in range(len(parts)):
        assert abs(float(residual[group == number].mean())) < 1e-9


def test_group_mean_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    assert group_mean(values, torch.tensor([0, 0, 0, 1])).tolist() == [2.0, 2.0, 2.0, 10.0]


def test_group_mean_of_nothing_is_nothing():
    assert group_mean(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.fixture
def batch(rng):
    return pack(make_groups(rng), 10**6)[0]


@pytest.fixture
def hidden(batch):
    return torch.randn(batch.tokens, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def head():
    torch.manual_seed(0)
    made = LearnedLogZ(WIDTH).eval()
    torch.nn.init.normal_(made.out.weight)
    return made


def test_equal_to_a_loop_over_the_prompts(head, hidden, batch):
    expected = []
    for start, prompt_length in zip(batch.cu_seqlens.tolist(), batch.prompt_lengths, strict=False):
        mean = hidden[start : start + prompt_length].mean(0)
        expected.append(head.out(head.body(mean)).squeeze())
    assert len(expected) == len(batch.lengths)
    torch.testing.assert_close(head(hidden, batch), torch.stack(expected))


def test_responses_do_not_enter(head, hidden, batch):
    before = head(hidden, batch)
    changed = hidden.detach().clone()
    prompt = torch.zeros(batch.tokens, dtype=torch.bool)
    prompt[batch.prompt_rows] = True
    changed[~prompt] = 1e6
    assert torch.equal(head(changed, batch), before)


def test_sequences_of_one_prompt_get_one_value(head, batch):
    by_prompt = (
        torch.arange(100.0).outer(torch.ones(WIDTH))[batch.input_ids].sin()
    )  # hidden states that depend on the token
    values = head(by_prompt, batch)
    for group in range(3):
        members = [place for place, index in enumerate(batch.sequences.tolist()) if index // 4 == group]
        assert len(members) == 4
        torch.testing.assert_close(values[members], values[members[:1]].expand(4))


class TestCalibration:
    def test_the_first_output_is_the_calibrated_bias(self, hidden, batch):
        head = LearnedLogZ(WIDTH).train()
        assert head(hidden, batch).tolist() == [0.0] * len(batch.lengths)
        head.calibrate(torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64))
        assert head(hidden, batch).tolist() == [2.0] * len(batch.lengths)

    def test_only_the_first_call_counts(self):
        head = LearnedLogZ(WIDTH)
        head.calibrate(torch.tensor([3.0]))
        head.calibrate(torch.tensor([-7.0]))
        assert head.out.bias.item() == 3.0

    def test_a_restored_head_is_not_calibrated_again(self):
        head, restored = LearnedLogZ(WIDTH), LearnedLogZ(WIDTH)
        head.calibrate(torch.tensor([3.0]))
        restored.load_state_dict(head.state_dict())
        restored.calibrate(torch.tensor([-7.0]))
        assert restored.out.bias.item() == 3.0


def test_gradient_reaches_the_prompts_hidden_states_and_every_parameter(head, hidden, batch):
    head(hidden, batch).square().sum().backward()
    prompt = torch.zeros(batch.tokens, dtype=torch.bool)
    prompt[batch.prompt_rows] = True
    moved = hidden.grad.abs().sum(1) > 0
    assert torch.equal(moved, prompt)
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_half_precision_hidden_states_give_float32(head, hidden, batch):
    exact = head(hidden, batch)
    half = head(hidden.bfloat16(), batch)
    assert half.dtype == exact.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0.05)
