"""Check the CPU's native code: which of it was loaded, otherwise why none was."""

from __future__ import annotations

from fastflow.doctor import probes
from fastflow.doctor.check import BROKEN, NOTE, OK, Check

NAME = "native code"
FACTS = """
from fastflow_kernels.cpu import native
print(native.is_worth_mending(), native.describe())
"""


def check_native() -> Check:
    """Load the native code in a process of its own: code for another processor would kill this one."""
    outcome = probes.run_python(FACTS)
    if not outcome.worked:
        return Check(NAME, BROKEN, outcome.error, "FASTFLOW_NATIVE=0 switches it off")
    is_worth_mending, _, description = outcome.output.splitlines()[-1].partition(" ")
    if is_worth_mending != "True":
        return Check(NAME, OK, description)
    happened, _, remedy = description.partition("; ")
    return Check(NAME, NOTE, f"{happened}: the ops run without it, slower on a CPU", remedy)
