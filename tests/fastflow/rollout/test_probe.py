"""What the proof of the weights says when it fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastflow.errors import FastflowError
from fastflow.rollout.probe import check_agreement


@pytest.mark.parametrize(("dtype", "fine", "off"), [(torch.float32, 5e-4, 2e-3), (torch.bfloat16, 0.2, 0.4)])
def test_a_difference_within_the_tolerance_is_returned(dtype, fine, off):
    ours = np.array([-1.0, -2.0])
    assert check_agreement(ours + fine, ours, dtype=dtype, engine="vLLM", version=3) == pytest.approx(fine)
    with pytest.raises(FastflowError, match=rf"after weight load 3, vLLM .*\(on average {off:.3g} nats apart"):
        check_agreement(ours - off, ours, dtype=dtype, engine="vLLM", version=3)


def test_it_says_what_it_may_mean():
    with pytest.raises(FastflowError) as failure:
        check_agreement([-9.0], np.array([-1.0]), dtype=torch.float32, engine="vLLM", version=0)
    for meaning in ("other weights", "vocabulary", "tokenizer", "padding", "dtype than the trainer's float32",
                    "quantised", "rope", "attention", "--rollout.engine local"):  # fmt: skip
        assert meaning in str(failure.value)


def test_what_is_no_number_is_no_agreement():
    with pytest.raises(FastflowError, match="token 2 of a probe"):
        check_agreement([-1.0, float("nan")], np.array([-1.0, -1.0]), dtype=torch.bfloat16, engine="vLLM", version=0)
