"""Every generator goes on where it stood."""

from __future__ import annotations

import random

import numpy as np
import torch

from fastflow.run import generators


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_every_generator_goes_on():
    generators.seed(3)
    _draw()
    states = generators.capture()
    wanted = _draw()
    assert _draw() != wanted
    generators.restore(states)
    assert _draw() == wanted
