"""Stand-ins for the vLLM process: each function takes the place of `child.main` in a spawned process."""

from __future__ import annotations

import os

from fastflow.rollout.vllm import messages


def dies_at_start(pipe, pulse, settings) -> None:
    os._exit(3)


def confuses_its_replies(pipe, pulse, settings) -> None:
    """Answers every command as if it were a probe."""
    pipe.send(messages.Ready())
    while not isinstance(pipe.recv(), messages.Close):
        pipe.send(messages.Probed(()))


def dies_when_it_samples(pipe, pulse, settings) -> None:
    """Obeys until it has to sample; its log-probs are 0."""
    pipe.send(messages.Ready())
    while not isinstance(message := pipe.recv(), messages.Close):
        if isinstance(message, messages.Attach):
            continue
        if isinstance(message, messages.Sample):
            os._exit(4)
        is_probe = isinstance(message, messages.Probe)
        pipe.send(messages.Probed((0.0,) * (len(message.ids) - 1)) if is_probe else messages.Done())
