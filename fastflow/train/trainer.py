"""The loop: sample, update, sync, record, save."""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastflow import interrupt
from fastflow.config.methods import OFFLINE, WITHOUT_ALPHA
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
from fastflow.rollout.sampler import Request, requests_for
from fastflow.run import directory as run_directory
from fastflow.run import generators
from fastflow.run.alarms import Alarms, alarms_off
from fastflow.run.checkpoints import Checkpoints
from fastflow.run.lock import RunLock
from fastflow.run.metrics import agreement, measure
from fastflow.run.recorder import Recorder, check_sinks, make_recorder
from fastflow.run.samples import describe, write_samples
from fastflow.train import assembly
from fastflow.train.evaluation import Evaluation, find_tasks, read_works
from fastflow.train.finite import all_skipped
from fastflow.train.learner import Learner
from fastflow.train.progress import RunProgress
from fastflow.train.rescue import cause, rescue, stops_all_ranks
from fastflow.train.restore import Saved, restore
from fastflow.train.resume import check_identity, check_ranks, find_or_begin
from fastflow.train.saver import WORK, Saver
from fastflow.train.standing import Standing
from fastflow.train.state import Position, UnderWay
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
    and the first writes.
    """

    def __init__(
        self,
        config: Config,
        console: Console,
        objective: MakeObjective = make_objective,
        *,
        resume: Resume = "no",
        ranks: Ranks | None = None,
    ):
        self.config, self.console, self.ranks = config, console, ranks or Ranks()
        self._make_objective = objective
        self.directory = Path(config.run.output)
        self._lock: RunLock | None = None
        self._signal: Callable[[], int] = lambda: 0
        self._saved: Saved | None = None
        self.evaluation: Evaluation | None = None
        try:
            with self.ranks.together():
                config.require_inputs()
                run_directory.check_inputs_survive(self.directory, config)
                check_sinks(config)
                if self.ranks.is_first:
                    self._lock = RunLock(self.directory)
                    self._saved = find_or_begin(self._checkpoints, config, resume)
            self._saved = self.ranks.from_first(self._saved)
            self._assemble(config, console)
        except BaseException:
            self._release_lock()
            raise

    @functools.cached_property
    def _checkpoints(self) -> Checkpoints:
        run = self.config.run
        return Checkpoints(self.directory, keep=run.keep, best=run.best_is if run.best_metric else None)

    def _assemble(self, config: Config, console: Console) -> None:
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        generators.seed(config.run.seed)

        with self.ranks.together():
            works = read_works(find_tasks(config), config, try_golds=self.ranks.is_first)
            loaded = assembly.load(config, self.ranks)
            if works:
                self.evaluation = Evaluation(works, config, loaded.policy, loaded.tokenizer, self.directory)
        policy, base, prompts = loaded.policy, loaded.base, loaded.prompts
        self.tokenizer, self.judge = loaded.tokenizer, loaded.judge
        total_updates = config.run.steps * config.batch.updates_per_rollout
        if self._saved is not None:
            total_updates = self._saved.state["identity"]["total_updates"]
        assembly.check_same_everywhere(self.ranks, loaded, config)
        beside = {}
        if self.evaluation is not None:
            self.ranks.check_same("questions in eval.tasks", self.evaluation.digest)
            beside = {"room": self.evaluation.room}
        with self.ranks.together():
            exporter, small_files = assembly.rehearse_save(loaded, config, self.directory, self.ranks)
        assembly.cut(loaded, config, self.ranks)
        identity = assembly.identify(loaded, config, total_updates)
        self.prompts = PromptStream(prompts, seed=config.run.seed, shuffle=config.data.shuffle)
        self.learner = Learner(policy, base, config, total_updates=total_updates, objective=self._make_objective)
        with self.ranks.together():
            if self.ranks.is_first:
                assembly.check_room(self.learner, config, self.directory, small_files, resumed=self.resumed)
        self.saver = Saver(self._checkpoints, self.learner, exporter, identity, config)
        self.progress = RunProgress(console, label="training", steps=config.run.steps)
        self.alarms = Alarms(off=alarms_off(config))
        self.standing = Standing(config, self.learner, self.prompts, len(prompts), self.alarms, self.directory)
        self.updates = Updates(
            config, self.learner, self.judge, self.standing, self.progress, self.directory, self.ranks
        )
        if self._saved is not None:
            with self.ranks.together():
                check_identity(identity, self._saved, config)
                check_ranks(self._saved, self.ranks)
                restore(self._saved, self.learner)
                self.standing.take_up(self._saved, self.requests)
            if config.rollout.ahead and self.position.ahead is None and self.position.step < config.run.steps:
                logger.warning(
                    "the run was stopped while responses were sampled ahead; they are sampled again from the saved "
                    "weights, which are newer, so that it is no longer the uninterrupted run to the bit"
                )
        self._taken_up = self.position.under_way
        make = assembly.make_recorded if config.objective.name in OFFLINE else make_sampler
        self.sampler = make(
            policy, self.tokenizer, prompts, config.rollout, on_progress=self.progress.advance_phase, **beside
        )
        self.schedule = assembly.make_schedule(self.sampler, policy, self.requests, config, ready=self.position.ahead)

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
            with self.ranks.together():
                recorder = self._open_directory()
            stack.callback(recorder.close)
            generators.restore(self.position.generators)  # last of all, or a constructor could draw from them
            if self.ranks.rank and not (self._saved and self._saved.is_of(self.ranks)):
                # otherwise all ranks would drop the same units
                generators.seed_apart(self.config.run.seed, self.ranks.rank, self.position.step)
            try:
                with self.progress:
                    self._take_up_evaluations(recorder)
                    for step in range(self.position.step + 1, self.config.run.steps + 1):
                        if self._ends_early(recorder):
                            break
                        PULSE.begin_step()
                        metrics = self.step(step)
                        if self.evaluation is not None and self.evaluation.is_due(step):
                            metrics |= self.evaluate(step, recorder)
                        self.record(step, metrics, recorder)
                        self.saver.check()
                        if self._save_is_due(step):
                            self.save()
                if not self.learner.updates:
                    raise all_skipped(self.learner.skips)
                self.save()
                with deferred_interrupt(work=WORK):
                    self.saver.wait()
                return self.directory / "policy"
            except KeyboardInterrupt as stop:
                said = f"{cause(stop)}; {self.rescue(stop)}{self._how_to_go_on()}"
                raise self._last_word(interrupt.RunStopped(said, stop), stop) from stop
            except (FastflowError, torch.OutOfMemoryError) as stop:
                raise self._last_word(FastflowError(f"{cause(stop)}; {self.rescue(stop)}"), stop) from stop
            except BaseException as stop:
                self.console.print(self.rescue(stop), highlight=False, markup=False, soft_wrap=True)
                raise

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
        return make_recorder(self.config, self.directory, self.console, after=after, skipped=skipped)

    def _stop_if_asked(self) -> None:
        """Raise StopRequest on all ranks where one of them has noted a signal."""
        if number := self.ranks.max(self._signal()):
            raise interrupt.StopRequest(number)

    def _take_up_evaluations(self, recorder: Recorder) -> None:
        """What an earlier process has evaluated; otherwise what the base can do."""
        if self.evaluation is None:
            return
        self.evaluation.take_up(self.position.step, self.ranks)
        if self.evaluation.is_due_at_start(self.position.updates):
            metrics = self.evaluate(0, recorder)
            with self.ranks.together():
                recorder.evaluated_start(metrics)

    def _ends_early(self, recorder: Recorder) -> bool:
        why = self.evaluation.why_enough() if self.evaluation is not None else None
        if why is not None:
            recorder.stopped_early(why)
        return why is not None

    def _save_is_due(self, step: int) -> bool:
        """Whether a save follows a step; one does where an evaluation's run.best_metric is best."""
        every = self.config.run.save_every
        is_best = self.evaluation is not None and self.evaluation.is_new_best(step)
        return is_best or (every > 0 and step % every == 0)

    def close(self) -> None:
        """Release the sampler and the run directory; `run` does so at its end."""
        try:
            if self.evaluation is not None:
                self.evaluation.close()
            self.judge.close()
            self.sampler.close()
        finally:
            self._release_lock()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

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
        seconds = {"sample": sampled - start, "total": time.perf_counter() - start}
        return self.measure(under_way.groups, updates, version=under_way.version, **seconds)

    def evaluate(self, step: int, recorder: Recorder) -> dict[str, Any]:
        """What the policy answers after a step, as metrics. Only where there are evaluations."""
        assert self.evaluation is not None
        recorder.evaluating(step, self.evaluation.describe())
        return self.evaluation.carry_out(step, self.schedule, self.ranks, self.progress, self._stop_if_asked)

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
        requests = requests_for(
            self.prompts.take(batch.prompts_per_step), batch.responses_per_prompt, seed=self.config.run.seed, step=step
        )
        self.standing.prompts_taken(step)
        return requests

    def dump_samples(self, step: int, update: Update) -> None:
        run = self.config.run
        due = run.samples_every and (step % run.samples_every == 0 or step in (1, run.steps))
        if due and self.ranks.is_first:
            samples = describe(step, *update, self.tokenizer, run.samples_per_dump)
            write_samples(self.directory, step, samples)

    def measure(
        self, groups: Sequence[Group], updates: list[Update], *, version: int, **seconds: float
    ) -> dict[str, Any]:
        judgements = [update.judgement for update in updates]
        well_formed = [fine for judgement in judgements for fine in judgement.well_formed or ()] or None
        scores = [score for judgement in judgements for score in judgement.scores or ()] or None
        results = [update.result for update in updates]
        objective = self.config.objective
        metrics = measure(
            groups,
            results,
            well_formed=well_formed,
            scores=scores,
            alpha=None if objective.name in WITHOUT_ALPHA else objective.alpha,
            seconds=seconds,
            device=self.learner.policy.device,
        )
        shown = first_done(updates)
        offline = objective.name in OFFLINE
        drawn_from_it = self.config.rollout.samples_the_policy and not offline
        metrics |= agreement(shown.groups, shown.result, version=version, samples_the_policy=drawn_from_it)
        if offline:
            metrics["weight_lag"] = None  # no weights of this run sampled
        metrics["skipped_updates_total"] = self.learner.skips.total
        metrics["peak_memory_bytes"] = self.ranks.max(metrics["peak_memory_bytes"])
        return {**metrics, "alarms": self.alarms.check(metrics)}

    def record(self, step: int, metrics: dict[str, Any], recorder: Recorder) -> None:
        """Write the step's line; from here on the step is done."""
        with deferred_interrupt():  # or the line could be written and the step not count
            with self.ranks.together():
                recorder.write(step, metrics)
            self.standing.step_done(step, metrics)
        self.progress.advance()

    def save(self) -> None:
        """Begin a save of what the run has reached, unless there is one. Raises SaveFailed where the last failed."""
        if self.saver.is_saved(self.position):
            return
        with deferred_interrupt(work=WORK):
            self.saver.save(replace(self.position, ahead=self.schedule.ahead()))

    def _last_word(self, error: FastflowError, stop: BaseException) -> FastflowError:
        """What ends the run; where all ranks end with it, the first says so."""
        error.silent = not self.ranks.is_first and stops_all_ranks(stop)
        return error

    def _how_to_go_on(self) -> str:
        """The command that goes on from the newest save; nothing without one."""
        if self.saver.position is None:
            return ""
        several = f" --devices {self.ranks.count}" if self.ranks.count > 1 else ""
        return f"; to go on: fastflow train --resume {shlex.quote(str(self.directory))}{several}"

    def rescue(self, stop: BaseException) -> str:
        """Save what a stopped run has reached, and say where it is. A save is a collective: where one rank has to stop
        alone, the newest save is what stays.
        """
        if self.ranks.count > 1 and not stops_all_ranks(stop):
            self.saver.give_up()
            return f"rank {self.ranks.rank} stops alone, so that nothing is saved now; {self.saver.last()}"
        return rescue(self.saver, self.learner, self.position, self.directory, stop)
