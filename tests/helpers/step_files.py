"""The files that one training step runs through, in the order in which it first enters each.

    python tests/helpers/step_files.py

The step is a real one: the demo's settings and a model of its size with random weights, sampled by the embedded engine.
No reward, no samples written. `Trainer.step` runs once before, so that every import is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from entered_files import entered_files

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "kernels"), str(ROOT)]


def trace_step(directory: Path) -> tuple[list[str], dict[str, Any]]:
    """Run in `directory`. Returns one step's files, relative to the repository, and its metrics."""
    from rich.console import Console

    from fastflow.config.reader import read_config
    from fastflow.demo.small_model import make_model, make_tokenizer
    from fastflow.demo.tasks import SUMS
    from fastflow.train.trainer import Trainer

    base, prompts = directory / "base", directory / "prompts.jsonl"
    tokenizer = make_tokenizer(SUMS.pieces)
    make_model(len(tokenizer), seed=0).causal_lm.save_pretrained(base)
    tokenizer.save_pretrained(base)
    topics = SUMS.topics(0, SUMS.held_out)
    prompts.write_text("".join(json.dumps({"prompt": SUMS.prompt(topic)}) + "\n" for topic in topics[:64]))
    settings = {
        "model.path": base,
        "data.path": prompts,
        "run.output": directory / "run",
        "run.samples_every": 0,
        "rollout.max_response_tokens": 8,
        "batch.prompts_per_step": 4,
    }
    config, _ = read_config(["--preset", "demo", *(f"--{name}={value}" for name, value in settings.items())])
    trainer = Trainer(config, Console(quiet=True))
    try:
        trainer.step(1)
        metrics: dict[str, Any] = {}
        entered = entered_files(lambda: metrics.update(trainer.step(2)), [ROOT / "fastflow", ROOT / "kernels"])
    finally:
        trainer.close()
    return [file.relative_to(ROOT).as_posix() for file in entered], metrics


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        print(*trace_step(Path(folder))[0], sep="\n")
