"""Trains the demo's model for a thousand steps, and measures that memory and file handles stay where they are.

    python -m tests.long_run
    python -m tests.long_run --steps 200 --bad

The settings are those of `fastflow demo` with a few responses a step, a save every 20 steps and samples every 10. With
--bad a part of the updates are skipped: what a skip holds must go too.
Memory counts as flat when the mean of the last tenth of the steps is within 2 % of that of the second tenth. Exits with
1 otherwise, or where the process has more files open at the end than after the second tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "kernels"), str(ROOT)]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from fastflow.config.reader import read_config  # noqa: E402
from fastflow.demo.small_model import make_model, make_tokenizer  # noqa: E402
from fastflow.demo.tasks import SUMS  # noqa: E402
from fastflow.train.trainer import Trainer  # noqa: E402

ALLOWED = 0.02
BAD = {"objective.format_pattern": "^(?![0-4])", "objective.format_penalty": -1e30, "optim.max_skips": 10**6}


class Measured(NamedTuple):
    """After each step: bytes that the process holds, and its open files. skipped: updates."""

    memory: list[int]
    files: list[int]
    skipped: int
    seconds: float

    @property
    def growth(self) -> float:
        """Of the last tenth over the second one, as a share."""
        tenth = len(self.memory) // 10
        early, late = self.memory[tenth : 2 * tenth], self.memory[-tenth:]
        return (sum(late) / tenth) / (sum(early) / tenth) - 1

    @property
    def leaked(self) -> int:
        """Files open after the last steps, and not after the second tenth. A save may have its own open for a while."""
        tenth = len(self.files) // 10
        return min(self.files[-tenth:]) - min(self.files[tenth : 2 * tenth])


def measure(directory: Path, steps: int, *, bad: bool = False) -> Measured:
    """Train in `directory`."""
    config, _ = read_config(["--preset", "demo", *(f"--{name}={value}" for name, value in _settings(directory).items()),
                             f"--run.steps={steps}",
                             *(f"--{name}={value}" for name, value in (BAD if bad else {}).items())])  # fmt: skip
    trainer = Trainer(config, Console(quiet=True))
    memory: list[int] = []
    files: list[int] = []
    record = trainer.record

    def measured(*arguments: object) -> None:
        record(*arguments)
        memory.append(_resident())
        files.append(len(os.listdir("/proc/self/fd")))

    trainer.record = measured
    start = time.perf_counter()
    trainer.run()
    return Measured(memory, files, trainer.learner.skips.total, time.perf_counter() - start)


def _settings(directory: Path) -> dict[str, object]:
    base, prompts = directory / "base", directory / "prompts.jsonl"
    tokenizer = make_tokenizer(SUMS.pieces)
    make_model(len(tokenizer), seed=0).causal_lm.save_pretrained(base)
    tokenizer.save_pretrained(base)
    topics = SUMS.topics(0, SUMS.held_out)
    prompts.write_text("".join(json.dumps({"prompt": SUMS.prompt(topic)}) + "\n" for topic in topics[:64]))
    return {
        "model.path": base,
        "data.path": prompts,
        "objective.log_z": "learned",
        "rollout.max_response_tokens": 6,
        "batch.prompts_per_step": 2,
        "batch.responses_per_prompt": 2,
        "run.output": directory / "run",
        "run.save_every": 20,
        "run.samples_every": 10,
        "run.report": "false",
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--bad", action="store_true", help="skip a part of the updates")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.steps, bad=arguments.bad)
    megabytes = [number / 2**20 for number in found.memory]
    tenth = len(megabytes) // 10
    print(
        f"{arguments.steps} steps in {found.seconds:.0f} s, {found.skipped} updates skipped\n"
        f"memory: {sum(megabytes[tenth : 2 * tenth]) / tenth:.1f} MiB in the second tenth, "
        f"{sum(megabytes[-tenth:]) / tenth:.1f} MiB in the last, {found.growth:+.2%} (at most {ALLOWED:.0%})\n"
        f"open files: {found.files[tenth]} after the first tenth, {found.files[-1]} at the end, {found.leaked:+d}"
    )
    return int(abs(found.growth) > ALLOWED or found.leaked > 0)


if __name__ == "__main__":
    sys.exit(main())
