"""Every error at the door: its type, and that it names the argument, what was given and what to do."""

import math

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from fastflow_kernels import flow_loss, linear_logprob
from kernel_problems import make_problem


def call_flow_loss(**changes):
    problem = make_problem([2, 3]).cast(torch.float32)
    return flow_loss(**{**problem.tensors, "cu_seqlens": problem.cu_seqlens, **problem.options, **changes})


def call_linear_logprob(**changes):
    tensors = make_problem([2, 3]).cast(torch.float32).tensors
    head = {name: tensors[name] for name in ("hidden", "weight", "targets")}
    return linear_logprob(**{**head, **changes})


def test_the_unchanged_calls_pass():
    call_flow_loss()
    call_flow_loss(cu_seqlens=torch.tensor([0, 2, 5]), clip_high=math.inf, clip_low=1, normaliser=7)
    call_linear_logprob()
    call_flow_loss(normaliser=np.float32(3), temperature=np.float16(2))
    call_linear_logprob(targets=torch.zeros(5, dtype=torch.int32), temperature=2, block_rows=1)


@pytest.mark.parametrize("call", [call_flow_loss, call_linear_logprob])
def test_forward_mode_is_refused_and_not_answered_with_zeros(call):
    hidden = make_problem([2, 3]).cast(torch.float32).tensors["hidden"]
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative.*fastflow_kernels\.reference"):
        torch.func.jvp(lambda values: call(hidden=values), (hidden,), (torch.ones_like(hidden),))


@pytest.mark.parametrize("name", ["log_z", "log_target", "length_scale", "behaviour_logprob"])
def test_forward_mode_is_refused_for_what_sequences_have(name):
    given = make_problem([2, 3]).cast(torch.float32).tensors[name]
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative.*fastflow_kernels\.reference"):
        torch.func.jvp(lambda values: call_flow_loss(**{name: values}), (given,), (torch.ones_like(given),))


TRANSFORMS = {
    "grad": torch.func.grad,
    "jacrev": torch.func.jacrev,
    "vmap": lambda function: (
        lambda values: torch.func.vmap(torch.func.grad(function), randomness="same")(values.unsqueeze(0))
    ),
    "of vmap": lambda function: torch.func.grad(
        lambda values: torch.func.vmap(function, randomness="same")(values.unsqueeze(0)).sum()
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("call", [call_flow_loss, call_linear_logprob])
def test_function_transforms_are_told_what_to_do(call, transform):
    hidden = make_problem([2, 3]).cast(torch.float32).tensors["hidden"]

    def loss(values):
        return call(hidden=values)[0] if call is call_linear_logprob else call(hidden=values).loss

    with pytest.raises(RuntimeError, match=r"cannot be differentiated by torch\.func.*; call torch\.autograd\.grad"):
        transform(loss)(hidden)


def test_function_transforms_take_log_probs_as_constants():
    hidden = make_problem([2, 3]).cast(torch.float32).tensors["hidden"]
    found = torch.func.grad(lambda values: values.sum() * call_linear_logprob(hidden=values.detach())[0])(hidden)
    torch.testing.assert_close(found, call_linear_logprob(hidden=hidden)[0].expand_as(hidden))


@pytest.mark.usefixtures("a_group")
@pytest.mark.parametrize("call", [call_flow_loss, call_linear_logprob])
@pytest.mark.parametrize("name", ["hidden", "weight"])
def test_a_part_of_a_tensor_is_refused(call, name):
    """As FSDP puts one in place of a parameter, outside its module's forward pass."""
    whole = make_problem([2, 3]).cast(torch.float32).tensors[name]
    part = distribute_tensor(whole, init_device_mesh("cpu", (1,)), [Shard(0)])
    with pytest.raises(TypeError, match=rf"{name} is a DTensor, .* pass {name}\.full_tensor\(\)"):
        call(**{name: part})


HEAD_ERRORS = [
    ({"hidden": [[1.0]]}, TypeError, "hidden must be a 2-D tensor, got list; pass"),
    ({"hidden": torch.zeros(1, 5, 5)}, ValueError, r"hidden must be 2-D, got shape \(1, 5, 5\); select"),
    ({"hidden": torch.zeros(5, 5).long()}, TypeError, "hidden must be float64.* got torch.int64; convert"),
    ({"weight": torch.zeros(11, 4)}, ValueError, r"share D.* got \(5, 5\) and \(11, 4\); pass"),
    ({"weight": torch.zeros(0, 5)}, ValueError, r"at least 1, got \(5, 5\) and \(0, 5\); pass"),
    (
        {"weight": torch.zeros(11, 5).double()},
        TypeError,
        "weight must be one of .*float32.* got torch.float64; conv",
    ),
    (
        {"weight": torch.zeros(11, 5, device="meta")},
        ValueError,
        "weight is on meta but hidden is on cpu; move",
    ),
    ({"bias": torch.zeros(10)}, ValueError, r"bias must have shape \(11,\).* got \(10,\); reshape"),
    ({"targets": [0] * 5}, TypeError, "targets must be a tensor.* got list; pass"),
    ({"targets": torch.zeros(4).long()}, ValueError, r"targets must have shape \(5,\).* got \(4,\); reshape"),
    ({"targets": torch.zeros(5)}, TypeError, "targets must be one of .* got torch.float32; convert"),
    (
        {"targets": torch.tensor([0, 1, 11, 2, 3])},
        ValueError,
        r"targets must lie in \[0, 11\), got .* 0 to 11; drop",
    ),
    (
        {"targets": torch.tensor([0, 1, 2, 3, 0]), "vocabulary": 3},
        ValueError,
        r"targets must lie in \[0, 3\), got .* 0 to 3",
    ),
    ({"targets": torch.tensor([0, 1, -100, 2, 3])}, ValueError, "got values from -100 to 3; drop"),
    ({"temperature": 0.0}, ValueError, "temperature must be a number above 0 and finite, got 0.0; choose"),
    ({"temperature": "1"}, TypeError, "temperature must be a number above 0 and finite, got str; pass"),
    ({"softcap": -30.0}, ValueError, "softcap must be a number above 0 and finite, got -30.0; choose"),
    ({"vocabulary": 12}, ValueError, "vocabulary must be from 1 to the 11 rows of the weight, got 12; pass the tok"),
    ({"vocabulary": 0}, ValueError, "vocabulary must be from 1 to the 11 rows of the weight, got 0; pass the tok"),
    ({"vocabulary": 5.0}, TypeError, "vocabulary must be a whole number or None, got float; pass"),
    ({"block_rows": 0}, ValueError, "block_rows must be at least 1, got 0; leave"),
    ({"block_rows": 1.5}, TypeError, "block_rows must be a whole number or None, got float; pass"),
    ({"block_rows": True}, TypeError, "block_rows must be a whole number or None, got bool; pass"),
]


@pytest.mark.parametrize("call", [call_flow_loss, call_linear_logprob])
@pytest.mark.parametrize(("changes", "error", "message"), HEAD_ERRORS)
def test_head_errors(call, changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("temperature", "error"),
    [(0, ValueError), (-1.0, ValueError), (math.inf, ValueError), (math.nan, ValueError)],
)
def test_temperature_errors(temperature, error):
    with pytest.raises(error, match="temperature must be a number above 0 and finite, got"):
        call_linear_logprob(temperature=temperature)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cu_seqlens": [0, 2, 5]}, TypeError, "cu_seqlens must be a tensor of row offsets, got list; pass"),
        (
            {"cu_seqlens": torch.zeros(1, 3).long()},
            ValueError,
            r"cu_seqlens must have shape \(S\+1,\), got \(1, 3\)",
        ),
        (
            {"cu_seqlens": torch.zeros(0).long()},
            ValueError,
            r"cu_seqlens must have shape \(S\+1,\), got \(0,\)",
        ),
        (
            {"cu_seqlens": torch.tensor([0.0, 2, 5])},
            TypeError,
            "cu_seqlens must be int32 or int64, got torch.float32",
        ),
        (
            {"cu_seqlens": torch.tensor([1, 2, 5])},
            ValueError,
            "start at 0 and end at .* 5, got 1 to 5; count",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 2, 4])},
            ValueError,
            "start at 0 and end at .* 5, got 0 to 4; count",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 6, 5])},
            ValueError,
            "must not decrease, got 6 then 5 at sequence 1; pass",
        ),
        ({"log_z": torch.zeros(3)}, ValueError, r"log_z must have shape \(2,\).* got \(3,\); reshape"),
        ({"log_z": 0.5}, TypeError, "log_z must be a tensor.* got float; pass"),
        ({"log_target": torch.zeros(2, 1)}, ValueError, r"log_target must have shape \(2,\).* got \(2, 1\)"),
        ({"length_scale": torch.ones(2).long()}, TypeError, "length_scale must be one of .* got torch.int64"),
        (
            {"behaviour_logprob": torch.zeros(2, requires_grad=True)},
            ValueError,
            r"behaviour_logprob requires grad, .* pass behaviour_logprob.detach\(\)",
        ),
        ({"clip_low": -0.1}, ValueError, "clip_low must be a number from 0 to 1, got -0.1; choose"),
        ({"clip_low": 1.1}, ValueError, "clip_low must be a number from 0 to 1, got 1.1; choose"),
        ({"clip_high": -0.1}, ValueError, "clip_high must be a number at or above 0 .*, got -0.1; choose"),
        ({"clip_high": math.nan}, ValueError, "clip_high must be a number at or above 0 .*, got nan; choose"),
        ({"clip_high": None}, TypeError, "clip_high must be a number .*, got NoneType; pass"),
        (
            {"ratio": "tokenmean"},
            ValueError,
            "ratio must be one of sequence, token_mean, got 'tokenmean'; did you mean 'to",
        ),
        ({"ratio": None}, ValueError, "ratio must be one of sequence, token_mean, got None; did you mean"),
        ({"normaliser": 0}, ValueError, "normaliser must be a number above 0 and finite, got 0; choose"),
        ({"normaliser": True}, TypeError, "normaliser must be a number above 0 and finite, got bool; pass"),
        ({"normaliser": np.float32(0)}, ValueError, "normaliser must be a number above 0 and finite, got 0.0; choose"),
        ({"normaliser": np.float32("inf")}, ValueError, "normaliser must be .* finite, got inf; choose"),
    ],
)
def test_sequence_errors(changes, error, message):
    with pytest.raises(error, match=message):
        call_flow_loss(**changes)
