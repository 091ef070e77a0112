"""Processes of `fastflow` that start at once: forks of one that has everything imported."""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = Path(__file__).with_name("preloaded_server.py")
# variables with these beginnings may be read when a library is imported, or when Python starts
READ_AT_IMPORT = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MKL_", "TORCH", "TRITON", "HF_", "TRANSFORMERS", "CUDA")
Stream = int | None


def can_be_forked(environment: Mapping[str, str]) -> bool:
    """Whether a fork would be what a new process is: on Linux, where nothing is set that was read before the fork."""
    return sys.platform == "linux" and _read_at_import(environment) == _read_at_import(os.environ)


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH"
    }  # fmt: skip


@functools.cache
def _server(path: str) -> socket.socket:
    """The socket that takes requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, SERVER, "fastflow", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # which ends it
    return ours


class Preloaded:
    """A fork with what tests use of subprocess.Popen."""

    def __init__(
        self, arguments: Sequence[str], *, program: str, env: Mapping[str, str], path: str, stdin: Stream = None,
        stdout: Stream = None, stderr: Stream = None, text: bool = True, start_new_session: bool = False,
    ):  # fmt: skip
        self.returncode: int | None = None
        self._text, self._pipes, theirs = text, {}, []
        for number, stream in enumerate((stdin, stdout, stderr)):
            if stream == subprocess.PIPE:
                assert number, "no test writes to a command"
                self._pipes[number], writing = os.pipe()
                theirs.append(writing)
            elif stream == subprocess.DEVNULL:
                theirs.append(os.open(os.devnull, os.O_RDWR))
            else:
                theirs.append(
                    os.dup(number if stream is None else theirs[1] if stream == subprocess.STDOUT else stream)
                )
        self._status, status = os.pipe()
        request = {
            "arguments": list(arguments), "program": program, "environment": dict(env), "directory": os.getcwd(),
            "session": start_new_session,
        }  # fmt: skip
        descriptors = array.array("i", [*theirs, status])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        _server(path).sendmsg([json.dumps(request).encode()], ancillary)
        for descriptor in descriptors:
            os.close(descriptor)
        self.pid = self._read_status()
        self._output = {number: bytearray() for number in self._pipes}
        self._readers = [threading.Thread(target=self._read, args=(number,), daemon=True) for number in self._pipes]
        for reader in self._readers:
            reader.start()

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("fastflow", timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple:
        """Wait for its end. Returns stdout and stderr; None for what is no pipe."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in self._readers:
            reader.join(None if deadline is None else max(deadline - time.monotonic(), 0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired("fastflow", timeout or 0, bytes(self._output.get(1, b"")))
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        output = [bytes(self._output[number]) if number in self._output else None for number in (1, 2)]
        return tuple(part.decode() if self._text and part is not None else part for part in output)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _end(self) -> None:
        self.returncode = self._read_status()
        os.close(self._status)

    def _read_status(self) -> int:
        message = os.read(self._status, 8)
        assert message, "the process that forks commands is gone"
        return struct.unpack("q", message)[0]

    def _read(self, number: int) -> None:
        with open(self._pipes[number], "rb", buffering=0) as pipe:
            while part := pipe.read(2**16):
                self._output[number] += part
