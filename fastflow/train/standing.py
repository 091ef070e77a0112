"""Where a run stands: noted after every update and every step, so that a save at any moment says what it is of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastflow.config.schema import Config
from fastflow.data import PromptStream
from fastflow.data.update import UpdateResult
from fastflow.rollout.sampler import Request
from fastflow.run import generators
from fastflow.run.alarms import Alarms
from fastflow.run.directory import lengths
from fastflow.train.learner import Learner
from fastflow.train.resume import prompts_after
from fastflow.train.saves.restore import Saved, read_generators
from fastflow.train.state import Position, UnderWay, read_groups, read_result


class Standing:
    """Keeps `position` up to date: that after the learner's last update.

    prompts: the stream, asked once a step and in order. prompt_count: how many it goes round.
    """

    def __init__(
        self, config: Config, learner: Learner, prompts: PromptStream, prompt_count: int, alarms: Alarms, run: Path
    ):
        self._config, self._learner, self._alarms, self._run = config, learner, alarms, run
        self._prompts, self._prompt_count = prompts, prompt_count
        self._after = {0: prompts.state()}  # the stream after the prompts of each step were taken
        self.position = self._whole(0, None)

    def prompts_taken(self, step: int) -> None:
        """The stream has served a step, which may be ahead of the updates."""
        self._after[step] = self._prompts.state()

    def update_done(self, under_way: UnderWay, results: Sequence[UpdateResult]) -> None:
        """An update inside a step: alarms and records stay those of the step before until it is whole."""
        self.position = replace(
            self.position,
            updates=self._learner.updates,
            version=self._learner.policy.version,
            generators=generators.capture(),
            under_way=replace(under_way, results=tuple(results)),
            ahead=None,
            metric=None,  # which is of the step before
            skips=self._learner.skips,
        )

    def step_done(self, step: int, metrics: dict[str, Any]) -> None:
        """A step of which the last update is done and the metrics are written. Those of an evaluation do not follow
        every step.
        """
        name = self._config.run.best_metric
        self.position = self._whole(step, metrics.get(name) if name is not None else None)

    def take_up(self, saved: Saved, requests: Callable[[int], Sequence[Request]]) -> None:
        """Stand where a save does, from which the learner is restored: prompts, alarms, and what it has begun."""
        state = saved.state
        step: int = state["step"]
        taken = step * self._config.batch.prompts_per_step
        self._prompts.load_state(prompts_after(taken, self._prompt_count, saved))
        self._after = {step: self._prompts.state()}
        self._alarms.load_state(state["alarms"])
        begun = read_groups(saved.rollout, requests(step + 1)) if saved.has_groups else None
        started = state["under_way"]
        under_way = None
        if begun is not None and started is not None:
            results = [read_result(saved.rollout, *entry) for entry in enumerate(started["results"], start=1)]
            under_way = UnderWay(begun, started["version"], tuple(results))
        self.position = Position(
            step=step,
            updates=state["updates"],
            version=state["version"],
            prompts=self._after[step],
            generators=read_generators(saved, self._learner.policy.ranks),
            records=state["records"],
            alarms=state["alarms"],
            under_way=under_way,
            ahead=begun if under_way is None else None,
            skips=self._learner.skips,
        )

    def _whole(self, step: int, metric: float | None) -> Position:
        self._after = {known: state for known, state in self._after.items() if known >= step}
        return Position(
            step=step,
            updates=self._learner.updates,
            version=self._learner.policy.version,
            prompts=self._after[step],
            generators=generators.capture(),
            records=lengths(self._run),
            alarms=self._alarms.state(),
            metric=metric if metric is not None and math.isfinite(metric) else None,
            skips=self._learner.skips,
        )
