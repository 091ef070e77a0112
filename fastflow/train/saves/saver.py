"""Saves beside the training: it waits for the copy to the host, and a thread of its own writes that to the disk."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping

import torch

from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.run.checkpoints import Checkpoints, name_of
from fastflow.run.directory import GROWING
from fastflow.run.durable import flush_file
from fastflow.train.learner import Learner
from fastflow.train.saves import checkpoint
from fastflow.train.saves.checkpoint import SaveFailed, Staged
from fastflow.train.saves.export import Exporter, ExportReport, announce
from fastflow.train.state import Identity, Position

logger = logging.getLogger(__name__)

WORK = "saving the policy"
GIVEN_UP_SECONDS = 2.0  # for a thread to notice that its save is no longer wanted


class Saver:
    """Writes saves one after the other. `position` is of the newest that is whole; None before there is one."""

    def __init__(
        self, checkpoints: Checkpoints, learner: Learner, exporter: Exporter, identity: Identity, config: Config
    ):
        self._checkpoints, self._run = checkpoints, checkpoints.run
        self._learner, self._exporter = learner, exporter
        self._ranks = learner.policy.ranks
        self._identity, self._config = identity, config
        self._skeleton = checkpoint.Skeleton(learner.policy)
        self.position: Position | None = None
        self._writing: Position | None = None
        self._thread: threading.Thread | None = None
        self._done = threading.Event()  # not the thread's own end: a signal in `join` makes some Pythons forget that
        self._failure: BaseException | None = None
        self.unsaved: Mapping[str, torch.Tensor] = {}  # the trained weights of a save that failed, on the first rank
        self._report: ExportReport | None = None
        self._announced = False
        self._publishing = threading.Lock()
        self._given_up = False

    def is_saved(self, position: Position) -> bool:
        """Whether a save of this position is whole, or being written."""
        known = [(one.step, one.updates) for one in (self.position, self._writing) if one is not None]
        return (position.step, position.updates) in known

    def take_up(self, position: Position) -> None:
        """Go on from the save of this position, which becomes what the run shows."""
        self.position = position
        self._checkpoints.discard()
        self._checkpoints.show_newest()

    def save(self, position: Position) -> None:
        """Begin a save of what the learner holds, once the one before it is done. Raises SaveFailed where that failed.

        Signals are to be held back meanwhile, and in `wait`.
        """
        self.wait()
        try:
            staged = checkpoint.stage(self._learner, position.generators)
        except Exception as error:
            raise self._failed(position, error) from error
        self._writing = position
        self._done.clear()
        if staged is None:  # the first rank writes
            self._done.set()
            return
        self._thread = threading.Thread(target=self._write, args=(staged, position), name="fastflow-save")
        self._thread.daemon = True  # `wait` waits for it, unless it is given up
        self._thread.start()

    def check(self) -> None:
        """Raise SaveFailed, soon after it has happened; does not wait for a save. Under several ranks a collective."""
        if self._ranks.from_first(self._done.is_set()):
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises SaveFailed, on all ranks, where that came to nothing."""
        position = self._writing
        if position is None:
            return
        self._done.wait()
        self._end_thread()
        self._writing = None
        failure, self._failure = self._failure, None
        failed = None if failure is None else self._failed(position, failure)
        told = self._ranks.from_first(None if failed is None else str(failed))
        if told is not None:
            raise (failed or SaveFailed(told)) from failure
        self.position = position
        if self._report is not None:
            announce(self._report, self._config, again=self._announced)
            self._announced = True

    def last(self) -> str:
        """A sentence on where the newest save is."""
        if self.position is None:
            return "no policy was saved before"
        step, updates = self.position.step, self.position.updates
        return f"the policy after step {step} ({counted(updates, 'update')}) is in {self._run / 'policy'}"

    def give_up(self) -> None:
        """Leave a save that is being written unpublished, unless it is published at this moment."""
        with self._publishing:
            self._given_up = True
        if self._writing is not None and not self._done.is_set():
            self._checkpoints.discard()
            self._end_thread(GIVEN_UP_SECONDS)

    def _end_thread(self, seconds: float | None = None) -> None:
        """Wait until the thread has freed its tensors: the end of the process would abort it in the middle of that."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _write(self, staged: Staged, position: Position) -> None:
        """Everything that needs no live tensor. In the thread."""
        try:
            name = name_of(position.step, position.updates, inside=position.under_way is not None)
            fresh = self._checkpoints.begin(name)
            try:
                manifest, report = checkpoint.write(
                    fresh, staged, self._skeleton, self._exporter, position, self._identity, self._config
                )
                for file in GROWING:  # as long as the save says, before it says so
                    with contextlib.suppress(OSError):  # which is no reason to lose the weights
                        flush_file(self._run / file)
                with self._publishing:
                    if self._given_up:
                        raise SaveFailed("it was given up")
                    self._checkpoints.publish(fresh, manifest)
                    self.position, self._report = position, report
            except BaseException:
                checkpoint.discard(fresh)
                raise
            self._checkpoints.retire()
        except BaseException as error:
            self._failure, self.unsaved = error, staged.weights
        finally:
            self._done.set()

    def _failed(self, position: Position, error: BaseException) -> SaveFailed:
        return SaveFailed(f"the save of step {position.step} in {self._run} failed: {checkpoint.reason(error)}")
