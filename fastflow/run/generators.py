"""Every random state of a process, as tensors: torch's on CPU and CUDA, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Start all of them from one number: what a run draws, in its own code and in a user's, is the same every time."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def seed_apart(number: int, *place: int) -> None:
    """Start them from one number and a place, so that each place draws other numbers."""
    seed(int(np.random.SeedSequence([number, *place]).generate_state(1)[0]))


def capture() -> dict[str, torch.Tensor]:
    """The states of now, to be drawn from again after `restore`."""
    numpy_state: Any = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states = {
        "torch.cpu": torch.get_rng_state(),
        "numpy.words": torch.from_numpy(numpy_state[1].astype(np.int64)),
        "numpy.place": torch.tensor([numpy_state[2], numpy_state[3]]),
        "numpy.gauss": torch.tensor(numpy_state[4], dtype=torch.float64),
        "python.words": torch.tensor([version, *words]),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"torch.cuda.{number}"] = state
    return states


def restore(states: Mapping[str, torch.Tensor]) -> None:
    """Continue from captured states. GPUs that are not here are left out, and those that are new keep theirs."""
    torch.set_rng_state(states["torch.cpu"])
    for number in range(torch.cuda.device_count()):
        if (state := states.get(f"torch.cuda.{number}")) is not None:
            torch.cuda.set_rng_state(state, number)
    place, has_gauss = states["numpy.place"].tolist()
    words = states["numpy.words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, place, has_gauss, float(states["numpy.gauss"])))
    version, *python_words = states["python.words"].tolist()
    gauss = states["python.gauss"].tolist()
    random.setstate((version, tuple(python_words), gauss[0] if gauss else None))
