"""A base of the demo's sums, pretrained for seconds, and held-out sums as a task."""

import json

import pytest

from fastflow.demo import command as demo
from fastflow.demo.tasks import SUMS

HELD_OUT = 12


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """(directory of the base, JSONL of held-out sums with prompt and answer, the held-out pairs)."""
    import dataclasses

    import torch
    from rich.console import Console

    directory = tmp_path_factory.mktemp("sums")
    task = dataclasses.replace(SUMS, pretraining_steps=300)
    topics, held_out = task.topics(0, HELD_OUT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        demo.make_base(task, topics, directory / "base", seed=0, console=Console(quiet=True))
    finally:
        torch.set_num_threads(threads)
    lines = [{"prompt": task.prompt(pair), "answer": str(sum(pair))} for pair in held_out]
    (directory / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory / "base", directory / "held_out.jsonl", held_out
