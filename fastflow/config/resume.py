"""Going on with a run: how it is asked for, and which of its settings may change."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastflow.config.parser import take_option
from fastflow.config.reader import SETTINGS_FILE, read_config
from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.errors import FastflowError

logger = logging.getLogger(__name__)

Resume = Literal["no", "auto", "yes"]
AUTO = "auto"

# Settings that a resumed run may change. Those that are not named here decide what it computes, and are refused.
HARMLESS = {
    "rollout.memory_fraction", "rollout.sleep", "rollout.startup", "rollout.silence", "rollout.restarts",
    "rollout.servers", "rollout.shared_folder",
    "optim.max_skips",
    "run.steps", "run.output", "run.overwrite", "run.save_every", "run.keep", "run.best_metric", "run.best_is",
    "run.export_dtype", "run.samples_every", "run.samples_per_dump", "run.tensorboard", "run.wandb", "run.report",
    "run.hang_after", "eval.every", "eval.at_start", "eval.patience",
}  # fmt: skip
ROUNDING = {  # the same to a reader, but sums in another order or responses by other random numbers
    "batch.tokens_per_microbatch", "model.device", "model.attention", "model.fused_layers", "model.compile",
    "model.checkpoint_share", "model.head", "run.threads", "run.replicas", "rollout.engine", "rollout.max_sequences",
    "rollout.adapters",
}  # fmt: skip
PLACES = {"model.path", "model.base", "data.path"}  # what lies there is compared instead


@dataclass(frozen=True)
class TrainRequest:
    """What `fastflow train` was asked for."""

    config: Config
    dry_run: bool
    resume: Resume = "no"


def read_request(arguments: Sequence[str]) -> TrainRequest:
    """Parse the arguments of `fastflow train`, `--resume RUN | auto` among them.

    With a run's directory its own settings lie under the other options. Raises FastflowError as read_config does.
    """
    where, rest = _split(arguments)
    if where is None:
        return TrainRequest(*read_config(rest))
    if where == AUTO:
        config, dry_run = read_config(rest)
        if config.run.overwrite:
            raise FastflowError("--resume auto and run.overwrite contradict each other; leave one of them out")
        return TrainRequest(config, dry_run, "auto")
    for option in ("--config", "--preset", "--run.output", "--run.overwrite"):
        if any(entry == option or entry.startswith(f"{option}=") for entry in rest):
            raise FastflowError(
                f"--resume {where} takes its settings from that run, and {option} contradicts them; leave it out, or "
                f"use --resume {AUTO}"
            )
    settings = Path(where) / SETTINGS_FILE
    if not settings.is_file():
        raise FastflowError(
            f"--resume {where}: there is no {SETTINGS_FILE}, so that this is no run of fastflow; give the directory "
            f"that training wrote (run.output), or --resume {AUTO}"
        )
    fixed = [f"--run.output={where}", "--run.overwrite=false"]
    return TrainRequest(*read_config(["--config", str(settings), *rest, *fixed]), "yes")


def check_settings(config: Config, earlier: Config, *, step: int, total_updates: int) -> None:
    """Name the settings that changed since the save. Raises FastflowError for one that would make it another run.

    step: steps that are done. total_updates: that the learning rate's course spans.
    """
    before, now = _flat(earlier), _flat(config)
    changed = {name for name in now if before[name] != now[name]}
    listed = {name: f"{name} = {now[name]} (was {before[name]})" for name in sorted(changed)}
    harmless = HARMLESS | ({name for name in now if name.startswith("eval.")} if not earlier.eval.every else set())
    if refused := changed - harmless - ROUNDING - PLACES:
        raise FastflowError(
            f"a resumed run cannot change {', '.join(listed[name] for name in sorted(refused))}: it would be another "
            "run; leave them as they were, or start a new run from the saved policy"
        )
    if "run.steps" in changed:
        _check_steps(config, listed["run.steps"], step, total_updates)
    silent = {"run.output", "run.overwrite"}
    if taken := [listed[name] for name in sorted(changed - silent)]:
        logger.info("settings that changed: %s", ", ".join(taken))
    if changed & ROUNDING:
        logger.warning(
            "with another %s the run goes on, but is no longer the uninterrupted one to the bit",
            ", ".join(sorted(changed & ROUNDING)),
        )


def _check_steps(config: Config, change: str, step: int, total_updates: int) -> None:
    if config.run.steps < step:
        raise FastflowError(f"{change} is less than the step {step} that is done already; raise it")
    if config.optim.schedule != "constant":
        raise FastflowError(
            f"{change} would bend the learning rate's course: optim.schedule = {config.optim.schedule} spans the "
            f"{counted(total_updates, 'update')} that the run was started with; leave run.steps as it was, or start "
            "a new run from the saved policy"
        )


def _flat(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, entries in dataclasses.asdict(config).items()
        for name, value in entries.items()
    }


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --resume, and the other arguments."""
    where, rest = take_option("--resume", arguments)
    if where == "":
        raise FastflowError(f"--resume needs the directory of a run, or {AUTO}")
    return where, rest
