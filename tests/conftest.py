"""Settings and fixtures of the whole test run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: the Triton kernels run on the CPU, slowly

# Public functions whose tensors have named shapes; shape_checks.py checks them in every test.
SHAPED_MODULES = [
    "fastflow.data.packing",
    "fastflow.data.trajectory",
    "fastflow.data.update",
    "fastflow.models.packed",
    "fastflow.models.scoring",
    "fastflow.objectives.dropout",
    "fastflow.objectives.flow",
    "fastflow.objectives.judging",
    "fastflow.objectives.known_tokens",
    "fastflow.objectives.log_z",
    "fastflow.objectives.masked_flow",
    "fastflow.objectives.objective",
    "fastflow.objectives.policy_gradient",
    "fastflow.objectives.policy_rewards",
    "fastflow.objectives.trajectory_balance",
    "fastflow_kernels.reference",
    "fastflow_kernels.sampling",
    "fastflow_kernels.shard",
]
install_import_hook(SHAPED_MODULES, "shape_checks.checked")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests press Ctrl-C

torch.set_num_threads(1)  # the models are so small that more threads only wait for each other

TESTS = Path(__file__).parent
UNCOVERED = [TESTS / "kernels", TESTS / "csrc", TESTS / "bench"]  # tracing makes interpreted kernels twice as slow


def pytest_collection_modifyitems(config, items):
    """Measure coverage of the trainer by its own quick tests: tracing takes more than half as long again."""
    if config.pluginmanager.hasplugin("_cov"):
        for item in items:
            if item.get_closest_marker("slow") or any(item.path.is_relative_to(folder) for folder in UNCOVERED):
                item.add_marker("no_cover")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """Every device the code runs on; CUDA is skipped by name where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return torch.device(request.param)
