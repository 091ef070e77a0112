"""The process that grades: items in as JSON lines, verdicts out, under a limit of memory that the parent sets.

It imports neither torch nor transformers. What a comparison prints is dropped, so that it stands between no verdicts.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys

from fastflow.evaluate.graders.grader import Item, extract, grade
from fastflow.evaluate.graders.verdict import Verdict
from fastflow.interrupt import ignore_signals

READY = "ready"
_DEATH_OF_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main(arguments: list[str]) -> int:
    """Serve until the input ends. arguments: bytes of address space, "math" and "gym" for what will be needed."""
    ignore_signals()
    _end_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    logging.disable(logging.CRITICAL)
    if "math" in arguments[1:]:
        import math_verify  # noqa: F401 (the import takes a second, which is no item's to pay)
    if "gym" in arguments[1:]:
        import reasoning_gym  # noqa: F401 (several seconds)
    _limit_memory(int(arguments[0]))
    print(READY, file=answers, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a parser's complaints would fill the pipe
    for line in sys.stdin:
        print(json.dumps(_judged(json.loads(line))), file=answers, flush=True)
    return 0


def _judged(message: dict[str, object]) -> tuple[str, str]:
    """The verdict, and the answer that the response gives."""
    item = Item(**message)  # type: ignore[arg-type]
    try:
        return grade(item).value, extract(item)
    except MemoryError:
        return Verdict.TIMED_OUT.value, ""
    except Exception:  # whatever a library makes of a text that no one foresaw
        return Verdict.UNPARSED.value, ""


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_parent() -> None:
    """On Linux, be killed when the parent dies: a worker in an endless comparison reads no end of its input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
