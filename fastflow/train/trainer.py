"""The loop: sample, update, sync, record, save."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastflow import interrupt
from fastflow.config.schema import Config
from fastflow.data import PromptStream, read_records, tokenize
from fastflow.data.response_text import check_spelling
from fastflow.data.trajectory import Group, split_evenly, without_truncated
from fastflow.data.update import UpdateResult
from fastflow.errors import FastflowError
from fastflow.interrupt import deferred_interrupt, stop_on_signals
from fastflow.models.packed import FrozenModel, check_tokenizer_fits, end_ids, load_models, load_tokenizer
from fastflow.models.scoring import rescore
from fastflow.models.self_check import check_models
from fastflow.objectives.flow import FlowObjective
from fastflow.objectives.judging import Judge, Judgement
from fastflow.objectives.objective import MakeObjective
from fastflow.rollout.admission import context_for
from fastflow.rollout.engines import make_sampler
from fastflow.rollout.sampler import Request, SamplingParams, requests_for
from fastflow.rollout.schedule import OneAhead, OnPolicy, Schedule
from fastflow.run import directory as run_directory
from fastflow.run.alarms import Alarms
from fastflow.run.lock import RunLock
from fastflow.run.metrics import agreement, measure
from fastflow.run.recorder import check_sinks, make_recorder
from fastflow.run.samples import describe, write_samples
from fastflow.train import checkpoint
from fastflow.train.export import Exporter, announce
from fastflow.train.learner import Learner
from fastflow.train.progress import RunProgress
from fastflow.train.rehearsal import rehearse
from fastflow.train.rescue import write_raw
from fastflow.train.save_room import check_disk, save_size

if TYPE_CHECKING:
    from rich.console import Console


class Update(NamedTuple):
    """One update's trajectories, what their text decided, and what the learner saw."""

    groups: list[Group]
    judgement: Judgement
    result: UpdateResult


class Trainer:
    """A training run, assembled from a Config; inputs are checked in the order of their cost.

    `run()` carries it out and returns the directory of the trained policy. From the start until `close`, no other
    process can write to run.output. objective: makes the objective that gives the loss; by default what the settings
    name.
    """

    def __init__(self, config: Config, console: Console, objective: MakeObjective = FlowObjective.of):
        config.require_inputs()
        self.config, self.console = config, console
        self._make_objective = objective
        self.directory = Path(config.run.output)
        run_directory.check_inputs_survive(self.directory, config)
        check_sinks(config)
        self._lock = RunLock(self.directory)
        try:
            run_directory.check_output(self.directory, overwrite=config.run.overwrite)
            self._assemble(config, console)
        except BaseException:
            self._lock.release()
            raise

    def _assemble(self, config: Config, console: Console) -> None:
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        torch.manual_seed(config.run.seed)

        records = read_records(config.data)
        self.tokenizer = load_tokenizer(config.model)
        prompts = tokenize(records, self.tokenizer, config.data)
        self.judge = Judge(config.objective, self.tokenizer)
        for text in config.rollout.stop:
            check_spelling(self.tokenizer, "rollout.stop", text)
        policy, base = load_models(config.model, config.lora)
        check_tokenizer_fits(self.tokenizer, policy, config.model)
        longest = context_for(policy, prompts, config.rollout.max_response_tokens)
        check_models(policy, base, longest=longest, names=(config.model.path, config.model.base or config.model.path))
        self.judge.end_with(end_ids(policy, self.tokenizer))

        updates = config.run.steps * config.batch.updates_per_rollout
        self.prompts = PromptStream(prompts, seed=config.run.seed, shuffle=config.data.shuffle)
        self.learner = Learner(policy, base, config, total_updates=updates, objective=self._make_objective)
        self._saved: tuple[int, int] | None = None  # step and updates of the last save
        self._exporter = self._rehearse_save()
        self.progress = RunProgress(console, label="training", steps=config.run.steps)
        self.sampler = make_sampler(
            policy, self.tokenizer, prompts, config.rollout, on_progress=self.progress.advance_phase
        )
        self.schedule = self._make_schedule()
        self.data_state = {0: self.prompts.state()}
        self.alarms = Alarms()

    def _make_schedule(self) -> Schedule:
        rollout = self.config.rollout
        params = SamplingParams(
            rollout.temperature,
            rollout.top_p,
            rollout.max_response_tokens,
            rollout.min_response_tokens,
            rollout.stop,
        )
        if rollout.ahead:
            return OneAhead(self.sampler, self.learner.policy, self.requests, params, steps=self.config.run.steps)
        return OnPolicy(self.sampler, self.learner.policy, self.requests, params)

    def _rehearse_save(self) -> Exporter:
        """Raise FastflowError now, not after the last step, for what cannot be saved."""
        config, base = self.config, self.learner.base
        starts_from_base = isinstance(base, FrozenModel) and config.model.base is None
        exporter = Exporter(self.tokenizer, config.run.export_dtype, base.model if starts_from_base else None)
        exporter, small_files = rehearse(self.learner.policy, exporter, config.model, self.directory)
        size = save_size(self.learner, config.run.export_dtype, tokenizer=small_files)
        check_disk(self.directory, size, config, reclaimed=run_directory.reclaimable(self.directory))
        return exporter

    def run(self) -> Path:
        """Every step, then the saved policy. A run that must stop early saves the policy first, whatever the reason."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(stop_on_signals())
            stack.callback(self.close)
            run_directory.prepare(self.directory, self.config)
            recorder = make_recorder(self.config, self.directory, self.console)
            stack.callback(recorder.close)
            completed = 0
            try:
                with self.progress:
                    for step in range(1, self.config.run.steps + 1):
                        recorder.write(step, self.step(step))
                        self.progress.advance()
                        completed = step
                        if self.config.run.save_every and step % self.config.run.save_every == 0:
                            self.save(completed)
                if self._saved != (completed, self.learner.updates):
                    self.save(completed)
                return self.directory / "policy"
            except KeyboardInterrupt as stop:
                raise interrupt.RunStopped(f"{_cause(stop)}; {self.rescue(completed, stop)}", stop) from stop
            except (FastflowError, torch.OutOfMemoryError) as stop:
                raise FastflowError(f"{_cause(stop)}; {self.rescue(completed, stop)}") from stop
            except BaseException as stop:
                self.console.print(self.rescue(completed, stop), highlight=False, markup=False, soft_wrap=True)
                raise

    def close(self) -> None:
        """Release the sampler and the run directory; `run` does so at its end."""
        try:
            self.sampler.close()
        finally:
            self._lock.release()

    def step(self, step: int) -> dict[str, Any]:
        """One rollout and its updates. Returns the step's metrics."""
        start = time.perf_counter()
        groups = self.sample(step)
        sampled = time.perf_counter()
        version = self.learner.policy.version
        updates = self.update(groups)
        self.dump_samples(step, updates[0])
        return self.measure(groups, updates, version=version, sample=sampled - start, total=time.perf_counter() - start)

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
        self.data_state[step] = self.prompts.state()
        return requests

    def update(self, groups: Sequence[Group]) -> list[Update]:
        """One optimiser update on each equal share of the groups."""
        if self.config.objective.truncated == "drop":
            groups = without_truncated(groups)
        shares = [share for share in split_evenly(groups, self.config.batch.updates_per_rollout) if share]
        self.progress.phase("updating", len(shares))
        updates = []
        for share in shares:
            judgement = self.judge(share)
            result = self.learner.update(share, penalty=judgement.penalty, reward=judgement.reward)
            updates.append(Update(share, judgement, result))
            self.progress.advance_phase()
        self.learner.free_gradients()  # sampling comes next, and needs the memory
        return updates

    def dump_samples(self, step: int, update: Update) -> None:
        run = self.config.run
        if run.samples_every and (step % run.samples_every == 0 or step in (1, run.steps)):
            samples = describe(step, *update, self.tokenizer, run.samples_per_dump)
            write_samples(self.directory, step, samples)

    def measure(self, groups: list[Group], updates: list[Update], *, version: int, **seconds: float) -> dict[str, Any]:
        judgements = [update.judgement for update in updates]
        well_formed = [fine for judgement in judgements for fine in judgement.well_formed or ()] or None
        scores = [score for judgement in judgements for score in judgement.scores or ()] or None
        results = [update.result for update in updates]
        metrics = measure(
            groups,
            results,
            well_formed=well_formed,
            scores=scores,
            alpha=self.config.objective.alpha,
            seconds=seconds,
            device=self.learner.policy.device,
        )
        metrics |= agreement(
            updates[0].groups,
            updates[0].result,
            version=version,
            samples_the_policy=self.config.rollout.samples_the_policy,
        )
        return {**metrics, "alarms": self.alarms.check(metrics)}

    def rescue(self, step: int, stop: BaseException) -> str:
        """Save what a stopped run has reached, and say where it is. Raises nothing: what it cannot save, it says."""
        try:
            with deferred_interrupt(work="saving the policy", deliver=False):
                return self._rescue(step, stop)
        except KeyboardInterrupt:
            return f"the save was given up; {self._last_save()}"

    def _rescue(self, step: int, stop: BaseException) -> str:
        traceback.clear_frames(stop.__traceback__)  # they hold the activations of the step that failed
        self.learner.free_gradients()
        if isinstance(stop, interrupt.GivenUp):
            return f"the save was given up; {self._last_save()}"
        if not all(bool(parameter.isfinite().all()) for parameter in self.learner.policy.parameters()):
            problem = "the policy's weights are no longer finite and were not saved over an earlier save"
            return f"{problem}; {self._last_save()}"
        if isinstance(stop, checkpoint.SaveFailed):
            return f"{write_raw(self.learner.policy, self.directory)}; {self._last_save()}"
        try:
            if self._saved != (step, self.learner.updates):
                self.save(step)
        except checkpoint.SaveFailed as failure:
            return f"{failure}; {write_raw(self.learner.policy, self.directory)}; {self._last_save()}"
        return self._last_save()

    def _last_save(self) -> str:
        if self._saved is None:
            return "no policy was saved before"
        step, updates = self._saved
        return f"the policy after step {step} ({updates} updates) is in {self.directory / 'policy'}"

    def save(self, step: int) -> Path:
        """Save the policy and the trainer's state. Raises SaveFailed, with an earlier save as it was."""
        with deferred_interrupt(work="saving the policy"):
            policy, report = checkpoint.save(
                self.directory, self.learner, self._exporter, step=step, data_state=self.data_state[step]
            )
            self._saved = step, self.learner.updates
            announce(report, self.config)
        return policy


def _cause(stop: BaseException) -> str:
    if isinstance(stop, KeyboardInterrupt):
        return str(stop) or "interrupted"
    if isinstance(stop, torch.OutOfMemoryError):
        return (
            "out of GPU memory: lower rollout.max_sequences if it was sampling, batch.tokens_per_microbatch if not, or "
            "raise model.checkpoint_share or set lora.rank"
        )
    return str(stop)
