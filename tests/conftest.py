"""Settings of the whole test run."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other
