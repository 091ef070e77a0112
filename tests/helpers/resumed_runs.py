"""Runs that die and go on, and whether they are the runs that never died."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from cli_runs import settings
from fastflow.config.reader import read_config
from fastflow.interrupt import RunStopped
from fastflow.models.packed import PackedModel
from fastflow.models.tokenizer import end_ids
from fastflow.rollout.local import LocalSampler
from fastflow.train.command import train
from fastflow.train.trainer import Trainer

CHECKERS = "python.words"  # Python's generator: the tests' type checker draws from it, so often as it is asked
MEASURED = ("seconds", "per_second", "memory")  # in the names of metrics that no two runs share


class Killed(BaseException):
    """The process is gone: nobody saves, nobody says anything."""


def configure(home: Path, **changes: object):
    return read_config([f"--{name}={value}" for name, value in settings(home, **changes).items()])[0]


def run_to_the_end(config, *, resume: str = "no") -> Path:
    train(config, Console(quiet=True), resume=resume)
    return Path(config.run.output)


def run_until_killed(config, *, before: int, updates: int | None = None, resume: str = "no") -> None:
    """Train until the step `before` begins, or until so many updates are done; then the process is gone."""
    trainer = Trainer(config, Console(quiet=True), resume=resume)
    step, update = trainer.step, trainer.learner.update

    def dying_step(number: int) -> dict[str, Any]:
        if number >= before:
            trainer.saver.wait()
            raise Killed
        return step(number)

    def dying_update(*arguments, **options):
        if updates is not None and trainer.learner.updates >= updates:
            trainer.saver.wait()
            raise Killed
        return update(*arguments, **options)

    trainer.step, trainer.learner.update = dying_step, dying_update
    trainer.ending.rescue = lambda stop: ""
    try:
        trainer.run()
    except Killed:
        return
    raise AssertionError("the run came to its end")


def run_until_stopped(config, *, after: int, resume: str = "no") -> str:
    """Train until Ctrl-C arrives, at the first moment it can after so many updates. Returns what is said."""
    trainer = Trainer(config, Console(quiet=True), resume=resume)
    step = trainer.learner.optimizer.step

    def signalled(*arguments, **options):
        step(*arguments, **options)
        if trainer.learner.updates + 1 == after:
            signal.raise_signal(signal.SIGINT)

    trainer.learner.optimizer.step = signalled
    try:
        trainer.run()
    except RunStopped as stop:
        return str(stop)
    raise AssertionError("the run came to its end")


class Overlapping:
    """A sampler with weights of its own, which are as old as its last load."""

    def __init__(self, policy: PackedModel, **options):
        self._own = copy.copy(policy)
        self._own.model = copy.deepcopy(policy.model)
        self._local = LocalSampler(self._own, **options)

    def load_weights(self, policy: PackedModel) -> None:
        self._own.model.load_state_dict(policy.model.state_dict())
        self._own.version = policy.version

    def begin(self, requests, params) -> None:
        self._groups = self._local.sample(requests, params)

    def finish(self):
        return self._groups

    def sample(self, requests, params):
        return self._local.sample(requests, params)

    def close(self) -> None: ...


def overlapping(policy, tokenizer, prompts, rollout, *, on_progress, room=0) -> Overlapping:
    """Stands in for make_sampler."""
    return Overlapping(policy, eos_ids=end_ids(policy, tokenizer), tokenizer=tokenizer, on_progress=on_progress)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not any(word in name for word in MEASURED)} for line in lines
    ]


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory, by file and name."""
    return {
        f"{file.relative_to(directory)}:{name}": tensor
        for file in sorted(directory.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def newest_save(run: Path) -> Path:
    return (run / "policy").resolve().parent


def check_same(one: Path, other: Path, *, generators: bool = True) -> None:
    """Two runs are the same: all of their last saves to the bit, every metric but for times, every sample."""
    first, second = tensors_of(newest_save(one)), tensors_of(newest_save(other))
    assert first.keys() == second.keys()
    different = [name for name in first if not _same_bits(first[name], second[name]) and not name.endswith(CHECKERS)]
    assert not [name for name in different if generators or "generators" not in name], different
    for mine, theirs in zip(metrics_of(one), metrics_of(other), strict=True):
        assert mine == theirs
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    assert _texts(one) == _texts(other)


def _texts(run: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (run / "samples").iterdir()}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def saves_in(run: Path) -> Sequence[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
