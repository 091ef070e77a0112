"""The process that preloaded.py talks to: it has imported what a run imports, and forks a process for each command.

It has one thread and has computed nothing, so that its forks are as good as new processes. A process that it forked
forks in turn what would be a new Python with a module of fastflow: a rank of torchrun, or a run of a sweep.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastflow.children import python_module

MODULES = [
    "fastflow.cli", "fastflow.config.resume", "fastflow.train.trainer", "fastflow.train.command",
    "fastflow.train.ranks.devices", "fastflow.train.ranks.launch", "fastflow.train.ranks.watch",
    "fastflow.train.dry_run",
    "fastflow.sweep.command", "fastflow.sweep.request", "fastflow.run.console", "fastflow_kernels.torch_projector",
    "jsonargparse", "rich.logging", "psutil", "peft", "accelerate", "jinja2", "safetensors.torch",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2", "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers",
    "torch.distributed.launcher.api", "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
]  # fmt: skip


def be_new(environment: dict[str, str]) -> None:
    """Forget what a new process would not have: handlers of signals, all but the three streams, another's variables."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry not in sys.path]
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]


class Forked:
    """What subprocess.Popen is for the command `python_module(NAME, ARGUMENTS)`, forked from this process."""

    def __init__(
        self, args: Sequence[str], *, env: dict[str, str], stdin: Any = None, stdout: Any = None, stderr: Any = None,
        start_new_session: bool,
    ):  # fmt: skip
        assert list(args[:3]) == python_module("")[:3] and start_new_session, args
        self.args, self.returncode = args, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                _redirect(stdin, stdout, stderr)
                be_new(env)
                sys.argv = [args[1], *args[4:]]
                end_with(lambda: runpy.run_module(args[3], run_name="__main__", alter_sys=True))
            finally:
                os._exit(1)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        end = os.pidfd_open(self.pid) if self.returncode is None else None
        if end is not None:
            ended = select.select([end], [], [], timeout)[0]
            os.close(end)
            if not ended:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self._wait(0)
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, options)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _redirect(stdin: Any, stdout: Any, stderr: Any) -> None:
    for number, stream in enumerate((stdin, stdout)):
        if stream == subprocess.DEVNULL:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        elif stream is not None:
            os.dup2(stream.fileno(), number)
    if stderr == subprocess.STDOUT:
        os.dup2(1, 2)
    elif stderr is not None:
        os.dup2(stderr.fileno(), 2)


def end_with(work: Callable[[], object], *, leave: Callable[[], object] = logging.shutdown) -> NoReturn:
    """End this process with what the work ends with, at once: to take all modules apart would copy their memory.

    leave: what is done at its end; what others than the server have registered is not its own.
    """
    code: object = 0
    try:
        work()
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of every program does
    leave()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def fork_instead_of_starting() -> None:
    """Fork ranks and runs of sweeps."""
    handler = importlib.import_module(MODULES[-2])
    handler.Popen = Forked
    runner = importlib.import_module("fastflow.sweep.runner")
    runner.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": Forked})  # type: ignore[attr-defined]


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork until nobody can ask any more. Returns the request in each forked process, and ends in this one."""
    children: dict[int, tuple[int, int]] = {}  # by pidfd: the pid, and the pipe that wants to know its end
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready != requests.fileno():
                poller.unregister(ready)
                pid, pipe = children.pop(ready)
                os.write(pipe, struct.pack("q", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
                os.close(pipe)
                os.close(ready)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, 2**20, 4)
            if not message:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            request = json.loads(message)
            *streams, pipe = descriptors
            pid = os.fork()
            if pid == 0:
                if request["session"]:
                    os.setsid()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                os.chdir(request["directory"])
                return request
            for stream in streams:
                os.close(stream)
            os.write(pipe, struct.pack("q", pid))
            child = os.pidfd_open(pid)
            children[child] = pid, pipe
            poller.register(child, select.POLLIN)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[2]))
    for name in MODULES:
        importlib.import_module(name)
    fork_instead_of_starting()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would lose all but one"
    gc.collect()
    gc.freeze()  # what all share is not copied to be looked through
    request = serve(requests)
    be_new(request["environment"])
    sys.argv = ["-c"]
    from fastflow.cli import main as run

    def command() -> NoReturn:
        exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
        sys.exit(run(request["arguments"]))

    end_with(command, leave=atexit._run_exitfuncs)


if __name__ == "__main__":
    main()
