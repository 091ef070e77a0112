"""`fastflow train`: say what will run, run it, say what came of it."""

from __future__ import annotations

import contextlib
import faulthandler
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.config.program import NO_PROGRAM, Program
from fastflow.config.resume import Resume
from fastflow.config.schema import Config
from fastflow.data.stream import warn_of_few
from fastflow.evaluate.as_trained import in_shell, options_of
from fastflow.models.ranks import Ranks
from fastflow.objectives.by_name import make_objective
from fastflow.objectives.objective import MakeObjective
from fastflow.run.console import say
from fastflow.run.status import describe_machine
from fastflow.train.announcement import describe, describe_best, describe_resumption
from fastflow.train.doubtful import warn_of_doubts
from fastflow.train.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console


def train(
    config: Config,
    console: Console,
    objective: MakeObjective = make_objective,
    *,
    resume: Resume = "no",
    ranks: Ranks | None = None,
    program: Program = NO_PROGRAM,
) -> Path:
    """Carry out a run, or the rest of one, with its announcements and its report. Returns the policy's directory.

    objective: makes the objective that gives the loss; by default what the settings name. resume, ranks,
    program: see Trainer.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no stderr, or no such signal here
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or 2, all_threads=True)
    with contextlib.closing(
        Trainer(config, console, objective, resume=resume, ranks=ranks, program=program)
    ) as trainer:
        say(console, describe_machine(trainer.learner.policy.device))
        say(console, describe(trainer))
        if resume != "no":
            say(console, describe_resumption(trainer))
        warn_of_doubts(config)
        warn_of_few(trainer.prompts.all, config.batch.prompts_per_step)
        policy = trainer.run()
    say(console, f"policy saved in {policy}")
    if (best := trainer.evaluation.best()) is not None:
        say(console, describe_best(trainer, best))
    if config.run.report and trainer.ranks.is_first:
        from fastflow.report.command import write_report

        report = write_report(trainer.directory)
        say(console, f"report written to {report}")
    if not config.eval.every:
        say(console, how_to_compare(config))
    return policy


def how_to_compare(config: Config) -> str:
    """The command that compares a run with its base, on prompts that are put as in training."""
    options = options_of(config) | {"max_tokens": str(config.rollout.max_response_tokens)}
    if config.model.trust_remote_code:
        options["model.trust_remote_code"] = "true"
    models = shlex.join([config.model.base or config.model.path, config.run.output])
    return f"to compare it with its base: fastflow evaluate {models} {in_shell(options)} --tasks TASKS"
