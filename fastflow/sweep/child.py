"""The module `fastflow.sweep.child PARENT ARGUMENTS`: the command fastflow, which ends soon after its sweep does.

A sweep that is killed cannot end its runs. Each run therefore watches for that, and stops as after SIGTERM: it saves.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

WATCH_SECONDS = 0.5


def watch(parent: int) -> None:
    """Start a thread that sends this process SIGTERM once `parent` is no longer its parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="fastflow-sweep", daemon=True).start()


if __name__ == "__main__":
    watch(int(sys.argv.pop(1)))
    runpy.run_module("fastflow", run_name="__main__", alter_sys=True)
