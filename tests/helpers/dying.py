"""A process that is gone at its n-th change of a directory: nothing after it happens, nothing is cleaned up."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.chmod"}
GONE = 9  # exit code
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FileOperations:
    """Counts every change below a directory, from Python or from safetensors' own code, and every fsync.

    at: the number of the one before which the process ends; 0 counts only.
    """

    def __init__(self, directory: Path, at: int = 0):
        self.directory, self.at = str(directory), at
        self.names: list[str] = []
        self._lock = threading.RLock()  # what `half` does is a change as well
        self._wrap()
        sys.addaudithook(self._audit)

    def happen(self, name: str, *, half: Callable[[], object] = lambda: None) -> None:
        with self._lock:
            self.names.append(name)
            if len(self.names) == self.at:
                half()
                os._exit(GONE)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and self._is_below(path):
                self.happen(f"open {Path(os.fsdecode(path)).name}")  # type: ignore[arg-type]
        elif event in EVENTS and any(self._is_below(path) for path in arguments):
            self.happen(event)

    def _is_below(self, path: object) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self.directory)

    def _wrap(self) -> None:
        import safetensors.torch as library

        fsync, serialize = os.fsync, library.serialize_file

        def counted_fsync(descriptor: int) -> None:
            self.happen("fsync")
            fsync(descriptor)

        def counted_serialize(tensors, filename, **options):
            self.happen("before weights")
            serialize(tensors, filename, **options)
            self.happen("half of the weights", half=lambda: os.truncate(filename, os.path.getsize(filename) // 2))

        os.fsync, library.serialize_file = counted_fsync, counted_serialize


def in_a_child(work: Callable[[], object], *, output: Path) -> int:
    """Fork, do the work, and return the child's pid. Its exit code is 0, or 1 after an exception; output: its log."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        unlock_progress_bars()
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def unlock_progress_bars() -> None:
    """Give all kinds of them a lock of this process. Their own is one for all forks, and stays locked where one of
    these is killed inside it.
    """
    lock, kinds = threading.RLock(), [tqdm]
    for kind in kinds:
        kind.set_lock(lock)
        kinds += kind.__subclasses__()


def exit_code(child: int) -> int:
    """Wait for a child: its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def exit_status(child: int) -> int | None:
    """The same without waiting: None while the child runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None
