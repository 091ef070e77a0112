"""Lock a directory for one writer while a run lasts. The lock of a dead process ends with it.

flock holds the lock. Some network file systems have no locks; there, a file that only one process can create replaces
it, and a warning says so: what a process on another machine leaves of it has to be removed by hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastflow.errors import FastflowError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
HOLDER_FILE = "run.holder"  # where there is no flock
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[Path, RunLock] = {}


class RunLock:
    """The lock on a directory, which is created where it is missing. `release` ends it, and may be called again.

    A second lock of the same process joins the first. setting: the setting that names the directory. Raises
    FastflowError where another process holds the lock, and where the directory cannot be written.
    """

    def __init__(self, directory: Path, setting: str = "run.output"):
        self._directory = directory
        self._key = Path(os.path.realpath(directory))
        self._count = 1
        self._joined = _held.get(self._key)
        if self._joined is not None:
            self._joined._count += 1
            return
        self._made = _make(directory, setting)
        try:
            self._file, self._descriptor = _acquire(directory, setting)
        except BaseException:
            self._remove_made()
            raise
        _held[self._key] = self

    def release(self) -> None:
        """End the lock, and remove directories that it created and that are still empty."""
        if self._joined is not None:
            joined, self._joined = self._joined, None
            joined.release()
            return
        self._count -= 1
        if self._count or _held.get(self._key) is not self:
            return
        del _held[self._key]
        self._file.unlink(missing_ok=True)  # before the lock ends: afterwards it could be another process's
        os.close(self._descriptor)
        self._remove_made()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _remove_made(self) -> None:
        for directory in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty
                directory.rmdir()


def _make(directory: Path, setting: str) -> list[Path]:
    """Create the directory. Returns those that were missing, the outermost first."""
    made: list[Path] = []
    try:
        if directory.exists() and not directory.is_dir():
            raise FastflowError(f"{setting} = {directory} is a file; choose a directory")
        for part in (*reversed(directory.parents), directory):
            if not part.exists():
                part.mkdir(exist_ok=True)
                made.append(part)
    except OSError as error:
        raise FastflowError(
            f"{setting} = {directory} cannot be created ({error.strerror}: {error.filename}); choose another"
        ) from error
    return made


def _acquire(directory: Path, setting: str) -> tuple[Path, int]:
    """Take the lock. Returns its file and the descriptor, open as long as the lock is held."""
    file = directory / LOCK_FILE
    try:
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            with _closed_unless_kept(descriptor) as keep:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise FastflowError(_in_use(directory, _read(file))) from None
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
                    file.unlink(missing_ok=True)
                    return _acquire_without_flock(directory, error)
                if not _is_same(descriptor, file):  # its last holder has removed it meanwhile
                    continue
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _this_process(), 0)
                keep()
                return file, descriptor
    except OSError as error:
        raise FastflowError(
            f"{setting} = {directory} cannot be written ({error.strerror}); choose another, or correct its permissions "
            "and its free room"
        ) from error


def _acquire_without_flock(directory: Path, reason: OSError) -> tuple[Path, int]:
    """Take the lock by creating a file that must not exist yet."""
    file = directory / HOLDER_FILE
    while True:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            holder = _read(file)
            if holder.get("host") != socket.gethostname() or _is_alive(holder):
                remedy = f"; if that process is gone, remove {file}"
                raise FastflowError(_in_use(directory, holder) + remedy) from None
            file.unlink(missing_ok=True)
    with _closed_unless_kept(descriptor) as keep:
        try:
            os.write(descriptor, _this_process())
        except OSError:
            file.unlink(missing_ok=True)
            raise
        keep()
    logger.warning(
        "%s has no file locks (%s): %s keeps other runs out, and has to be removed by hand if a run dies on another "
        "machine", directory, reason.strerror, file,
    )  # fmt: skip
    return file, descriptor


@contextlib.contextmanager
def _closed_unless_kept(descriptor: int) -> Iterator[Callable[[], object]]:
    """Close a descriptor at the end of the block, unless the block has called what this yields."""
    with contextlib.ExitStack() as end:
        end.callback(os.close, descriptor)
        yield end.pop_all


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _this_process() -> bytes:
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"host": socket.gethostname(), "pid": pid, "born": _born(pid), "since": since}).encode()


def _read(file: Path) -> dict[str, Any]:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # it is just being written or removed
    return holder if isinstance(holder, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Return whether the holder, on this machine, still runs. Its pid alone may belong to another process by now."""
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return True  # unknown
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(pid) == holder.get("born")


def _born(pid: int) -> str | None:
    """Return when a process started, in clock ticks since the machine did; None without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _in_use(directory: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
    return f"{directory} is in use by {who}; wait for it, stop it, or choose another directory"
