"""How a run ends that has to stop: why, what it leaves behind, and the command that goes on from there."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastflow import interrupt
from fastflow.config.program import NO_PROGRAM, Program, script
from fastflow.errors import FastflowError
from fastflow.run.console import say
from fastflow.train.finite import NonFiniteError
from fastflow.train.learner import Learner
from fastflow.train.saves.checkpoint import SaveFailed
from fastflow.train.saves.rescue import rescue
from fastflow.train.saves.saver import Saver
from fastflow.train.standing import Standing

if TYPE_CHECKING:
    from rich.console import Console


class Ending:
    """Saves what a stopped run has reached, and makes the message that ends it. again: what resumes the run."""

    def __init__(
        self, saver: Saver, learner: Learner, standing: Standing, directory: Path, console: Console, again: str
    ):
        self._saver, self._learner, self._standing = saver, learner, standing
        self._directory, self._console, self._again = directory, console, again
        self._ranks = learner.policy.ranks

    @contextlib.contextmanager
    def saved(self) -> Iterator[None]:
        """Save where the block ends with an exception, whatever it is. What a user can do something about becomes a
        FastflowError; a defect stays what it is, and the console says where the save is.
        """
        try:
            yield
        except KeyboardInterrupt as stop:
            said = f"{cause(stop)}; {self.rescue(stop)}{self._how_to_go_on()}"
            raise self._last_word(interrupt.RunStopped(said, stop), stop) from stop
        except (FastflowError, torch.OutOfMemoryError) as stop:
            said = f"{cause(stop)}; {self.rescue(stop)}"
            if not isinstance(stop, NonFiniteError):  # it would come to the same
                said += self._how_to_go_on()
            raise self._last_word(FastflowError(said), stop) from stop
        except BaseException as stop:
            say(self._console, self.rescue(stop))
            raise

    def rescue(self, stop: BaseException) -> str:
        """Save what a stopped run has reached, and say where it is. A save is a collective: where one rank has to stop
        alone, the newest save is what stays.
        """
        if self._ranks.count > 1 and not stops_all_ranks(stop):
            self._saver.give_up()
            return f"rank {self._ranks.rank} stops alone, so that nothing is saved now; {self._saver.last()}"
        return rescue(self._saver, self._learner, self._standing.position, self._directory, stop)

    def _how_to_go_on(self) -> str:
        """The command that goes on from the newest save; nothing without one."""
        if self._saver.position is None:
            return ""
        several = f" --devices {self._ranks.count}" if self._ranks.count > 1 else ""
        return f"; to go on: {self._again}{several}"

    def _last_word(self, error: FastflowError, stop: BaseException) -> FastflowError:
        """What ends the run; where all ranks end with it, the first says so."""
        error.silent = not self._ranks.is_first and stops_all_ranks(stop)
        return error


def what_resumes(directory: Path, program: Program, *, own_objective: bool) -> str:
    """Say what goes on from a save of this run. own_objective: whether a program has handed over the loss."""
    if program is not NO_PROGRAM:
        return f'{script()} again, with resume="yes"'
    begin = "this program again with" if own_objective else "fastflow train"
    return f"{begin} --resume {shlex.quote(str(directory))}"


def cause(stop: BaseException) -> str:
    """Say why a run stops, and what to do about it."""
    if isinstance(stop, KeyboardInterrupt):
        return str(stop) or "interrupted"
    if isinstance(stop, torch.OutOfMemoryError):
        return (
            "out of GPU memory: lower rollout.max_sequences if it was sampling, batch.tokens_per_microbatch if not, or "
            "raise model.checkpoint_share or set lora.rank"
        )
    return str(stop)


def stops_all_ranks(stop: BaseException) -> bool:
    """Whether every rank stops for this reason at the same place, so that they can still save together."""
    if isinstance(stop, KeyboardInterrupt):
        return isinstance(stop, interrupt.StopRequest) and not isinstance(stop, interrupt.GivenUp)
    return isinstance(stop, (NonFiniteError, SaveFailed)) or getattr(stop, "on_all_ranks", False)
