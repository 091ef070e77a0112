"""Run all checks in order, so that the failure of one stops no other."""

from __future__ import annotations

import functools
from collections.abc import Callable

from fastflow.doctor import engine, extras, libraries, machine, native, ops, vllm
from fastflow.doctor.check import BROKEN, Check
from fastflow.errors import message_of


def examine(*, on_check: Callable[[str], None], start_vllm: bool = False) -> list[Check]:
    """Run every check. on_check: receives the name of each before it runs. A check that raises counts as broken."""
    checks: list[Check] = []

    def run(name: str, check: Callable[[], Check | list[Check]]) -> None:
        on_check(name)
        try:
            found = check()
        except Exception as error:  # the doctor must survive every broken installation
            reason = message_of(error, typed=True)
            found = Check(
                name, BROKEN, reason, "try a fresh environment: python3 -m venv .venv && .venv/bin/pip install ."
            )
        checks.extend(found if isinstance(found, list) else [found])

    run("python", libraries.check_python)
    run("fastflow's requirements", libraries.check_requirements)
    run("fastflow's imports", libraries.check_imports)
    torch = libraries.Torch(works=False, cuda=False)

    def check_torch() -> Check:
        nonlocal torch
        check, torch = libraries.check_torch()
        return check

    run("torch", check_torch)
    cuda = torch.cuda
    run("triton", lambda: libraries.check_triton(cuda))
    run("transformers", libraries.check_transformers)
    run("torchvision, torchaudio, torchcodec", libraries.check_media)
    if torch.works:
        run(native.NAME, native.check_native)
        run("flow_loss", lambda: ops.check_ops(cuda))
    for extra in extras.EXTRAS:
        run(extra.distribution, functools.partial(extras.check_extra, extra, cuda))
    run("vllm", lambda: vllm.check_vllm(cuda))
    if start_vllm:
        run(engine.NAME, lambda: engine.check_engine(cuda))
    run("shared memory", machine.check_shared_memory)
    run("threads", machine.check_threads)
    return checks
