"""A module that a run names as its reward, so that all ranks import it; it then loses an engine in the way LOSES says.

once: rank 0's real vLLM is killed after the first step. always: the engines are stand-ins, and rank 1's dies in the
second step and whenever it starts after that.
"""

from __future__ import annotations

import os
import signal

from vllm_runs import descendants

WAY, RANK = os.environ.get("LOSES", ""), os.environ.get("RANK", "")


def reward(response: str, record: dict[str, object]) -> float:
    global WAY
    if (WAY, RANK) == ("once", "0"):
        WAY = "never again"
        for pid, command in descendants().items():
            if "spawn_main" in command:
                os.kill(pid, signal.SIGKILL)
    return float(len(response))


if WAY == "always":
    from engine_of_ranks import StandIn
    from fastflow.rollout.vllm import kept_engine, messages
    from fastflow.rollout.vllm import sampler as vllm_sampler

    class Dying(StandIn):
        def wait_for(self, kind):
            if kind is messages.Sampled and RANK == "1" and self.asked.count("Sample") == 2:
                self.lost += [messages.Sampled, messages.Ready]
            return super().wait_for(kind)

    kept_engine.EngineProcess = Dying
    vllm_sampler.check_installed = lambda: None
