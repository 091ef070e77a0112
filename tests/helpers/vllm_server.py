"""Real vLLM servers for the tests, each in a process group of its own that ends with the test in every case."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

STARTUP_SECONDS = 600  # on a busy machine; a quiet one takes about 60
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "HF_HUB_OFFLINE": "1",
}


class VllmServer:
    """Starts at once; `wait` returns when it serves. transfers: with fastflow's weight-transfer backend."""

    def __init__(self, model: Path, *, transfers: bool, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.model, self._log = f"http://127.0.0.1:{port}", model, log
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy"),
            *("--dtype", "float32", "--max-model-len", "40", "--enforce-eager"),
            *("--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill"),
            *(("--weight-transfer-config", json.dumps({"backend": "fastflow"})) if transfers else ()),
        ]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=log.parent,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise RuntimeError(f"vLLM does not serve: {self._log.read_text()[-2000:]}")

    def post(self, path: str, body: dict) -> tuple[int, str]:
        """Status and text."""
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def kill(self) -> None:
        """The whole process group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
