"""All cases under their names, and what must hold of the table as a whole."""

from collections.abc import Iterable

from bench.checking.launch_cases import LaunchCase, launch_cases, thorough_launch_cases
from bench.checking.op_cases import OpCase, op_cases, thorough_op_cases
from bench.checking.subjects import WHOLLY_WRITTEN, defined_kernels

Case = OpCase | LaunchCase


def cases() -> dict[str, Case]:
    """Those of every CI run."""
    return _by_name([*op_cases(), *launch_cases()])


def thorough_cases() -> dict[str, Case]:
    """A quarter of an hour more."""
    return _by_name([*thorough_op_cases(), *thorough_launch_cases()])


def _by_name(cases: list[Case]) -> dict[str, Case]:
    named = {case.name: case for case in cases}
    assert len(named) == len(cases), "two cases share a name"
    return named


def gaps_in_the_table(cases: Iterable[Case]) -> list[str]:
    """In words, after the cases ran: kernels that none of them launched, and rules for kernels that do not exist."""
    defined = defined_kernels()
    never = defined - {kernel for case in cases for kernel in case.launches}
    stale = WHOLLY_WRITTEN.keys() - defined
    return [
        *(f"no case launches {kernel}: add one to op_cases.py or launch_cases.py" for kernel in sorted(never)),
        *(f"WHOLLY_WRITTEN in subjects.py names {kernel}, which no file defines" for kernel in sorted(stale)),
    ]
