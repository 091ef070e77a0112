"""The loop: sample, update, sync, record, save."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastflow import interrupt
from fastflow.config.methods import OFFLINE
from fastflow.config.program import NO_PROGRAM, Program
from fastflow.config.resume import Resume
from fastflow.config.schema import Config
from fastflow.data import PromptStream
from fastflow.data.trajectory import Group
from fastflow.errors import FastflowError
from fastflow.interrupt import deferred_interrupt, noted_signals, stop_on_signals
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import Ranks
from fastflow.models.share import rescore
from fastflow.objectives.by_name import make_objective
from fastflow.objectives.objective import MakeObjective
from fastflow.rollout.engines import make_sampler
from fastflow.rollout.recorded import RecordedResponses
from fastflow.rollout.sampler import Request, Sampler, requests_for
from fastflow.rollout.schedule import make_schedule
from fastflow.run import directory as run_directory
from fastflow.run import generators
from fastflow.run.alarms import Alarms
from fastflow.run.checkpoints import Checkpoints
from fastflow.run.json_text import finite
from fastflow.run.lock import RunLock
from fastflow.run.recorder import Recorder, check_login, check_sinks, make_recorder
from fastflow.run.samples import describe, write_samples
from fastflow.train.ending import Ending, what_resumes
from fastflow.train.finite import all_skipped
from fastflow.train.inputs import Loaded, open_inputs
from fastflow.train.learner import Learner
from fastflow.train.progress import RunProgress
from fastflow.train.resume import check_identity, check_ranks, find_or_begin
from fastflow.train.saves.restore import Saved, restore
from fastflow.train.saves.room import check_room
from fastflow.train.saves.saver import WORK, Saver
from fastflow.train.standing import Standing
from fastflow.train.state import Identity, Position, UnderWay
from fastflow.train.step_metrics import measure_step
from fastflow.train.updates import Update, Updates, first_done

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)


class Trainer:
    """A training run, assembled from a Config; inputs are checked in the order of their cost.

    `run()` carries it out and returns the directory of the trained policy. From the start until `close`, no other
    process can write to run.output. objective: makes the objective that gives the loss; by default what the settings
    name. resume: whether it goes on with the run in run.output: "yes", or "auto" where that has been saved. ranks: all
    that carry the run out together, one by default. Each does the same on the same numbers, computes its share of them,
    and the first writes. program: has what the settings cannot name (see train/program.py).
    """

    def __init__(
        self,
        config: Config,
        console: Console,
        objective: MakeObjective = make_objective,
        *,
        resume: Resume = "no",
        ranks: Ranks | None = None,
        program: Program = NO_PROGRAM,
    ):
        self.config, self.console, self.ranks, self.program = config, console, ranks or Ranks(), program
        self.directory = Path(config.run.output)
        self._lock: RunLock | None = None
        self._signal: Callable[[], int] = lambda: 0
        self._saved: Saved | None = None
        try:
            checkpoints = self._open(resume)
            self._assemble(objective, checkpoints)
        except BaseException:
            self._release_lock()
            raise

    def _open(self, resume: Resume) -> Checkpoints:
        """Take the run directory, and find the save to go on from. What costs nothing is checked first."""
        run = self.config.run
        checkpoints = Checkpoints(self.directory, keep=run.keep, best=run.best_is if run.best_metric else None)
        with self.ranks.together():
            self.config.require_inputs()
            self.program.check(self.config)
            run_directory.check_inputs_survive(self.directory, self.config)
            check_sinks(self.config)
            if self.ranks.is_first:
                check_login(self.config)
                self._lock = RunLock(self.directory)
                self._saved = find_or_begin(checkpoints, self.config, resume)
        self._saved = self.ranks.from_first(self._saved)
        return checkpoints

    def _assemble(self, objective: MakeObjective, checkpoints: Checkpoints) -> None:
        config, directory = self.config, self.directory
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        generators.seed(config.run.seed)
        total_updates = config.run.steps * config.batch.updates_per_rollout
        if self._saved is not None:
            total_updates = self._saved.state["identity"]["total_updates"]
        inputs = open_inputs(config, directory, self.ranks, total_updates=total_updates, program=self.program)
        loaded, self.evaluation = inputs.loaded, inputs.evaluation
        self.tokenizer, self.judge = loaded.tokenizer, loaded.judge
        self.prompts = PromptStream(loaded.prompts, seed=config.run.seed, shuffle=config.data.shuffle)
        self.learner = Learner(loaded.policy, loaded.base, config, total_updates=total_updates, objective=objective)
        with self.ranks.together():
            if self.ranks.is_first:
                check_room(self.learner, config, directory, inputs.small_files, resumed=self.resumed)
        self.progress = RunProgress(self.console, label="training", steps=config.run.steps)
        self.alarms = Alarms(config)
        self.standing = Standing(config, self.learner, self.prompts, len(loaded.prompts), self.alarms, directory)
        identity = replace(inputs.identity, objective=type(self.learner.objective).__name__)
        self.saver = Saver(checkpoints, self.learner, inputs.exporter, identity, config)
        again = what_resumes(directory, self.program, own_objective=objective is not make_objective)
        self.ending = Ending(self.saver, self.learner, self.standing, directory, self.console, again)
        self.updates = Updates(config, self.learner, self.judge, self.standing, self.progress, directory, self.ranks)
        if self._saved is not None:
            self._go_on_from(self._saved, identity)
        self._taken_up = self.position.under_way
        self.sampler = self._make_sampler(loaded)
        self.schedule = make_schedule(
            self.sampler, loaded.policy, self.requests, config.rollout, steps=config.run.steps,
            ready=self.position.ahead,
        )  # fmt: skip

    def _go_on_from(self, saved: Saved, identity: Identity) -> None:
        """Stand where a save does, after it has proved to be of this run."""
        with self.ranks.together():
            check_identity(identity, saved, self.config)
            check_ranks(saved, self.ranks)
            restore(saved, self.learner)
            self.standing.take_up(saved, self.requests)
        if self.config.rollout.ahead and self.position.ahead is None and self.position.step < self.config.run.steps:
            logger.warning(
                "the run was stopped while responses were sampled ahead; they are sampled again from the saved "
                "weights, which are newer, so that it is no longer the uninterrupted run to the bit"
            )

    def _make_sampler(self, loaded: Loaded) -> Sampler:
        config, advance = self.config, self.progress.advance_phase
        if config.objective.name in OFFLINE:
            return RecordedResponses(config.run.seed, advance)
        return make_sampler(
            loaded.policy, loaded.tokenizer, loaded.prompts, config.rollout,
            on_progress=advance, room=self.evaluation.room,
        )  # fmt: skip

    @property
    def position(self) -> Position:
        """Where the run stands after its last update."""
        return self.standing.position

    @property
    def resumed(self) -> bool:
        """Whether this goes on from a save."""
        return self._saved is not None

    def run(self) -> Path:
        """Every step, then the saved policy. A run that must stop early saves the policy first, whatever the reason."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(stop_on_signals())
            if self.ranks.count > 1:
                self._signal = stack.enter_context(noted_signals())
            stack.callback(self.close)
            recorder = self._begin()
            stack.callback(recorder.close)
            with self.ending.saved():
                with self.progress:
                    self._carry_out(recorder)
                self._save_last()
            recorder.done()
            return self.directory / "policy"

    def _carry_out(self, recorder: Recorder) -> None:
        """Every step that is still to be done."""
        self._evaluate_start(recorder)
        for step in range(self.position.step + 1, self.config.run.steps + 1):
            if (why := self.evaluation.why_enough()) is not None:
                recorder.stopped_early(why)
                break
            PULSE.begin_step()
            metrics = self.step(step)
            if self.evaluation.is_due(step):
                metrics |= self.evaluate(step, recorder)
            self.record(step, metrics, recorder)
            self.saver.check()
            if self._save_is_due(step):
                self.save()
            self._tell_program(step, metrics)

    def step(self, step: int) -> dict[str, Any]:
        """One rollout and its updates. Returns the step's metrics."""
        start = time.perf_counter()
        self._stop_if_asked()
        under_way, self._taken_up = self._taken_up, None
        if under_way is None:
            under_way = UnderWay(self.sample(step), self.learner.policy.version)
        sampled = time.perf_counter()
        self._stop_if_asked()
        updates = self.updates.carry_out(under_way)
        with self.ranks.together():
            if not (shown := first_done(updates)).result.skipped:
                self.dump_samples(step, shown)
        metrics = measure_step(
            self.config, self.learner, under_way, updates, sample=sampled - start, total=time.perf_counter() - start
        )
        return {**metrics, "alarms": self.alarms.check(metrics)}

    def sample(self, step: int) -> list[Group]:
        """The step's prompts, with responses and their behaviour log-probs."""
        batch = self.config.batch
        self.progress.phase("sampling", batch.prompts_per_step * batch.responses_per_prompt)
        groups = self.schedule.groups(step)
        if self.config.importance.source == "recompute":
            groups = rescore(self.learner.policy, groups, batch.tokens_per_microbatch)
        return groups

    def requests(self, step: int) -> list[Request]:
        """The step's prompts with the seeds of their responses."""
        batch = self.config.batch
        turns = self.prompts.turns(batch.prompts_per_step)
        prompts = self.prompts.take(batch.prompts_per_step)
        requests = requests_for(prompts, batch.responses_per_prompt, seed=self.config.run.seed, step=step, turns=turns)
        self.standing.prompts_taken(step)
        return requests

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, Any]:
        """What the policy answers after a step, as metrics."""
        recorder.evaluating(step, self.evaluation.describe())
        return self.evaluation.carry_out(step, self.schedule, self.ranks, self.progress, self._stop_if_asked)

    def record(self, step: int, metrics: dict[str, Any], recorder: Recorder) -> None:
        """Write the step's line; from here on the step is done."""
        with deferred_interrupt():  # or the line could be written and the step not count
            with self.ranks.together():
                recorder.write(step, metrics)
            self.standing.step_done(step, metrics)
        self.progress.advance()

    def _tell_program(self, step: int, metrics: dict[str, Any]) -> None:
        """Call the program's on_step. What that draws at random changes nothing in the run."""
        if self.program.on_step is None or not self.ranks.is_first:
            return
        states = generators.capture()
        self.program.on_step(finite({"step": step, **metrics}))
        generators.restore(states)

    def save(self) -> None:
        """Begin a save of what the run has reached, unless there is one. Raises SaveFailed where the last failed."""
        if self.saver.is_saved(self.position):
            return
        with deferred_interrupt(work=WORK):
            self.saver.save(replace(self.position, ahead=self.schedule.ahead()))

    def _save_is_due(self, step: int) -> bool:
        """Whether a save follows a step; one does where run.best_metric is best."""
        every = self.config.run.save_every
        return self.evaluation.is_new_best(step) or (every > 0 and step % every == 0)

    def _save_last(self) -> None:
        """Save the trained policy, and wait for it. Raises FastflowError where no update trained it."""
        if not self.learner.updates:
            raise all_skipped(self.learner.skips)
        self.save()
        with deferred_interrupt(work=WORK):
            self.saver.wait()

    def dump_samples(self, step: int, update: Update) -> None:
        run = self.config.run
        due = run.samples_every and (step % run.samples_every == 0 or step in (1, run.steps))
        if due and self.ranks.is_first:
            samples = describe(step, *update.trained, update.result, self.tokenizer, run.samples_per_dump)
            write_samples(self.directory, step, samples)

    def _begin(self) -> Recorder:
        """Open the run's files, and put the random states where the first step finds them."""
        with self.ranks.together():
            recorder = self._open_directory()
        generators.restore(self.position.generators)  # last of all, or a constructor could draw from them
        if self.ranks.rank and not (self._saved and self._saved.is_of(self.ranks)):
            # otherwise all ranks would drop the same units
            generators.seed_apart(self.config.run.seed, self.ranks.rank, self.position.step)
        return recorder

    def _open_directory(self) -> Recorder:
        if not self.ranks.is_first:
            self.saver.position = self.position if self.resumed else None
            return Recorder([])
        if self._saved is None:
            run_directory.prepare(self.directory, self.config)
        else:
            sizes = self._saved.state["records"]
            done = len(self.position.under_way.results) if self.position.under_way else 0
            run_directory.cut_back(self.directory, self.config, step=self.position.step, sizes=sizes, updates=done)
            self.saver.take_up(self.position)
            self.progress.advance(self.position.step)
        after, skipped = self.position.step, self.position.skips.total
        try:
            return make_recorder(self.config, self.directory, self.console, after=after, skipped=skipped)
        except FastflowError:
            if not self.resumed:
                run_directory.undo(self.directory)
            raise

    def _evaluate_start(self, recorder: Recorder) -> None:
        """Take up what an earlier process has evaluated; otherwise ask what the base can do."""
        self.evaluation.take_up(self.position.step, self.ranks)
        if self.evaluation.is_due_at_start(self.position.updates):
            metrics = self.evaluate(0, recorder)
            with self.ranks.together():
                recorder.evaluated_start(metrics)

    def _stop_if_asked(self) -> None:
        """Raise StopRequest on all ranks where one of them has noted a signal."""
        if number := self.ranks.max(self._signal()):
            raise interrupt.StopRequest(number)

    def close(self) -> None:
        """Release the sampler and the run directory; `run` does so at its end."""
        with contextlib.ExitStack() as stack:  # from the last to the first, and all of them
            stack.callback(self._release_lock)
            stack.callback(self.sampler.close)
            stack.callback(self.judge.close)
            stack.callback(self.evaluation.close)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
