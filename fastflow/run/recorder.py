"""Where a run's measurements go: JSONL first, then the console, TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastflow.config.methods import POLICY_GRADIENTS
from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of, need
from fastflow.run.console import say, say_fields
from fastflow.run.directory import METRICS_FILE, WANDB_FILE
from fastflow.run.evaluated import SECONDS, is_evaluated, lines_of
from fastflow.run.json_text import finite
from fastflow.run.output_file import writing
from fastflow.run.pace import Pace, duration
from fastflow.run.status import StatusSink

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

_LOGIN_REMEDY = "log in by `wandb login`, write to the disk by WANDB_MODE=offline, or leave run.wandb out"


class Sink(Protocol):
    """One place that metrics are written to. A sink that derives from it needs only the first two methods."""

    def write(self, step: int, metrics: dict[str, Any]) -> None: ...

    def close(self) -> None: ...

    def evaluating(self, step: int, what: str) -> None:
        """An evaluation of the policy after this step begins."""
        return

    def evaluated_start(self, metrics: dict[str, Any]) -> None:
        """The metrics of an evaluation before the first step; later ones are among those of their step."""
        return

    def stopped_early(self, why: str) -> None:
        """The run ends before its last step, as it was asked to."""
        return

    def done(self) -> None:
        """The last step is done, and the policy is saved."""
        return


class JsonlSink(Sink):
    """One JSON object a step, flushed at once; non-finite numbers become null."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._file.write(json.dumps(finite({"step": step, **metrics})) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ConsoleSink(Sink):
    """One line a step, and one for each task of an evaluation. after: steps that are done when it begins. evaluates:
    see Pace. advantages: whether the residuals are a policy gradient's advantages.
    """

    def __init__(
        self, console: Console, steps: int, after: int = 0, evaluates: Callable[[int], bool] = lambda step: False,
        *, advantages: bool = False,
    ):  # fmt: skip
        self._console = console
        self._residual = "advantage" if advantages else "residual"
        self._pace = Pace(steps, after, evaluates=evaluates)
        self._width = len(str(steps))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        malformed, reward = metrics["malformed_share"], metrics["reward_mean"]
        if is_evaluated(metrics):
            self._pace.evaluated(metrics[SECONDS])
        self._pace.step_done(step)
        left = self._pace.seconds_left()
        fields = [
            f"step {step:>{self._width}}",
            f"loss {metrics['loss']:.4f}",
            *([] if reward is None else [f"reward mean {reward:.3f}"]),
            f"{self._residual} {metrics['residual_mean']:+.3f}±{metrics['residual_std']:.3f}",
            *_slope(metrics),
            f"length {metrics['length_mean']:.1f}",
            f"cut {metrics['truncated_share']:.0%}",
            *([] if malformed is None else [f"malformed {malformed:.0%}"]),
            *([] if math.isnan(metrics["token_entropy"]) else [f"entropy {metrics['token_entropy']:.2f}"]),
            f"grad {metrics['grad_norm']:.2f}",
            *([f"skipped {counted(metrics['skipped_updates'], 'update')}"] if metrics["skipped_updates"] else []),
            *([] if metrics["mismatch_kl"] is None else [f"mismatch {metrics['mismatch_kl']:.0e}"]),
            *([f"lag {metrics['weight_lag']:g}"] if metrics["weight_lag"] else []),
            *(_rate(metrics[f"{noun}s"] / metrics["seconds"], noun) for noun in ("response", "token")),
            *([f"{duration(left)} left"] if left else []),
        ]
        say_fields(self._console, "  ".join(fields))
        for alarm in metrics["alarms"]:
            say(self._console, f"  alarm: {alarm}", style="bold yellow")
        self._show_evaluation(metrics)

    def close(self) -> None: ...

    def evaluating(self, step: int, what: str) -> None:
        if not self._console.is_interactive:  # where no bar shows it
            say(self._console, f"  evaluating after step {step}: {what}")

    def evaluated_start(self, metrics: dict[str, Any]) -> None:
        say(self._console, f"step {0:>{self._width}}  before any update")
        self._pace.evaluated(metrics[SECONDS])
        self._show_evaluation(metrics)

    def stopped_early(self, why: str) -> None:
        say(self._console, why)

    def _show_evaluation(self, metrics: dict[str, Any]) -> None:
        for line in lines_of(metrics):
            say_fields(self._console, f"  {line}")


class TensorBoardSink(Sink):
    """Scalars as TensorBoard events. after: steps that are done; what was written of later ones does not count."""

    def __init__(self, directory: Path, after: int = 0):
        need("tensorboard", extra="tensorboard", purpose="run.tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=after + 1 if after else None)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name.replace("@", "_"), value, step)  # its names have no @

    def evaluated_start(self, metrics: dict[str, Any]) -> None:
        self.write(0, metrics)

    def close(self) -> None:
        self._writer.close()


class WandbSink(Sink):
    """Scalars to a Weights & Biases project, under an id that stays the same when the run is resumed, and at first by
    the name of the run's directory. Raises FastflowError where Weights & Biases takes no run.

    Steps that were logged before a run died are dropped when it does them again: they are equal.
    """

    def __init__(self, project: str, config: dict[str, Any], directory: Path):
        wandb = need("wandb", extra="wandb", purpose="run.wandb")
        file = directory / WANDB_FILE
        name = None  # it may have been renamed there
        if not file.exists():
            file.write_text(secrets.token_hex(4), encoding="utf-8")
            name = directory.resolve().name
        identity = file.read_text(encoding="utf-8")
        with _told_as_ours(project):
            self._run = wandb.init(
                project=project, config=config, dir=str(directory), id=identity, resume="allow", name=name
            )

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._run.log(_numbers(metrics), step=step)

    def evaluated_start(self, metrics: dict[str, Any]) -> None:
        self.write(0, metrics)

    def close(self) -> None:
        self._run.finish()


class Recorder:
    """All sinks of a run, which write to its directory. Raises FastflowError where that takes no more."""

    def __init__(self, sinks: Sequence[Sink], directory: Path | None = None):
        self._sinks = list(sinks)
        self._directory = directory or Path()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        with writing(self._directory):
            for sink in self._sinks:
                sink.write(step, metrics)

    def evaluating(self, step: int, what: str) -> None:
        for sink in self._sinks:
            sink.evaluating(step, what)

    def evaluated_start(self, metrics: dict[str, Any]) -> None:
        with writing(self._directory):
            for sink in self._sinks:
                sink.evaluated_start(metrics)

    def stopped_early(self, why: str) -> None:
        for sink in self._sinks:
            sink.stopped_early(why)

    def done(self) -> None:
        for sink in self._sinks:
            sink.done()

    def close(self) -> None:
        """What the disk does not take any more at the end is left out: the policy is saved by then."""
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                logger.warning("the last metrics in %s are not complete: %s", self._directory, error.strerror or error)


def check_sinks(config: Config) -> None:
    """Raise FastflowError now, not after the models are loaded, when a sink's package is missing."""
    if config.run.tensorboard:
        need("tensorboard", extra="tensorboard", purpose="run.tensorboard")
    if config.run.wandb is not None:
        need("wandb", extra="wandb", purpose="run.wandb")


def check_login(config: Config) -> None:
    """Raise FastflowError where run.wandb asks for Weights & Biases and nobody is logged in there."""
    if config.run.wandb is None or os.environ.get("WANDB_MODE", "online") not in ("online", "run", "shared"):
        return
    wandb = need("wandb", extra="wandb", purpose="run.wandb")
    if "prompt" not in inspect.signature(wandb.login).parameters:
        return  # an older one, which would ask; its run says the same later
    with _told_as_ours(config.run.wandb):
        is_known = wandb.login(prompt=False)
    if not is_known:
        raise FastflowError(
            f"run.wandb = {config.run.wandb}, and nobody is logged in to Weights & Biases; {_LOGIN_REMEDY}"
        )


@contextlib.contextmanager
def _told_as_ours(project: str) -> Iterator[None]:
    """Turn what wandb raises into a FastflowError."""
    try:
        yield
    except Exception as error:  # of many types: no login, no network, a project of somebody else
        raise FastflowError(
            f"run.wandb = {project}: Weights & Biases refuses ({message_of(error)}); {_LOGIN_REMEDY}"
        ) from error


def make_recorder(config: Config, directory: Path, console: Console, *, after: int = 0, skipped: int = 0) -> Recorder:
    """The sinks that the configuration asks for. after, skipped: steps that are done, and updates of them that were
    skipped, where the run is resumed.
    """
    steps = config.run.steps

    def is_due(step: int) -> bool:
        return config.eval.is_due(step, steps)

    online = []  # first: where it takes no run, the files do not say that one is running
    if config.run.wandb is not None:
        online.append(WandbSink(config.run.wandb, dataclasses.asdict(config), directory))
    with writing(directory):
        sinks: list[Sink] = [
            JsonlSink(directory / METRICS_FILE),
            ConsoleSink(console, steps, after, is_due, advantages=config.objective.name in POLICY_GRADIENTS),
            StatusSink(directory, steps, after, skipped, is_due),
        ]
        if config.run.tensorboard:
            sinks.append(TensorBoardSink(directory / "tensorboard", after))
    return Recorder([*sinks, *online], directory)


def _rate(per_second: float, noun: str) -> str:
    """Write a rate with two digits at least: large models may take seconds for a response."""
    return f"{counted(per_second, noun, '.2g' if per_second < 10 else '.0f')}/s"


def _slope(metrics: dict[str, Any]) -> list[str]:
    """The slope over its target; nothing where there is none, as without a base or where a group does not vary."""
    if math.isnan(metrics["slope"]):
        return []
    return [f"slope {metrics['slope']:.2f}" + ("" if metrics["alpha"] is None else f"/{metrics['alpha']:g}")]


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
