"""The updates of a step: each share of its trajectories judged, learned from, and noted as done."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastflow.config.schema import Config
from fastflow.data.trajectory import Group, shares_of
from fastflow.data.update import UpdateResult
from fastflow.interrupt import deferred_interrupt
from fastflow.models.ranks import Ranks
from fastflow.objectives.judging import Judge, Judged
from fastflow.train import bad_updates
from fastflow.train.finite import ALL_CUT, CUT_REMEDY, NonFiniteError
from fastflow.train.learner import Learner
from fastflow.train.progress import RunProgress
from fastflow.train.standing import Standing
from fastflow.train.state import UnderWay

logger = logging.getLogger(__name__)


class Update(NamedTuple):
    """One update.

    trained: the trajectories that the objective got. result: what the learner saw of them. judged: these, and those
    that objective.truncated = drop left out.
    """

    trained: Judged
    result: UpdateResult
    judged: Judged


class Updates:
    """What carries out the updates of each step."""

    def __init__(
        self, config: Config, learner: Learner, judge: Judge, standing: Standing, progress: RunProgress,
        directory: Path, ranks: Ranks,
    ):  # fmt: skip
        self._config, self._learner, self._judge, self._standing = config, learner, judge, standing
        self._progress, self._directory, self._ranks = progress, directory, ranks

    def carry_out(self, under_way: UnderWay) -> list[Update]:
        """One optimiser update on each equal share of the groups; those that are done already are taken as they are."""
        count = self._config.batch.updates_per_rollout
        shares = shares_of(under_way.groups, count, lambda group: any(self._left(group, self._least)))
        self._progress.phase("updating", len(shares))
        updates: list[Update] = []
        results: list[UpdateResult] = []
        for share, done in itertools.zip_longest(shares, under_way.results):
            judged = self._without_voters(self._judged(share))
            trained = self._trained_on(judged)
            result = done or self._learn(under_way, trained, results, of=len(shares))
            results.append(result)
            updates.append(Update(trained, result, judged))
            self._progress.advance_phase()
        self._learner.free_gradients()  # sampling comes next, and needs the memory
        return updates

    def _without_voters(self, judged: Judged) -> Judged:
        """The first responses of each group, where the others only vote."""
        if not (count := self._config.objective.ttrl_trained):
            return judged
        return judged.only([place < count for group in judged.groups for place in range(len(group.trajectories))])

    def _trained_on(self, judged: Judged) -> Judged:
        """What the objective gets. Where it would be nothing it is all, and the learner skips the update."""
        for least in (self._least, 1):
            left = [one for group in judged.groups for one in self._left(group, least)]
            if any(left):
                return judged.only(left)
        return judged

    def _left(self, group: Group, least: int) -> list[bool]:
        """Which responses the objective gets: not those that were cut, where these are dropped, unless it compares the
        rewards of the others with theirs. least: of which there must be as many.
        """
        if not self._drops or getattr(self._learner.objective, "compares_left_out", False):
            return [True] * len(group.trajectories)
        ended = [entry.finish_reason == "stop" for entry in group.trajectories]
        return [one and sum(ended) >= least for one in ended]

    @property
    def _drops(self) -> bool:
        return self._config.objective.truncated == "drop"

    @property
    def _least(self) -> int:
        """Responses that must be left of a group."""
        return getattr(self._learner.objective, "least_of_group", 1) if self._drops else 1

    def _learn(self, under_way: UnderWay, trained: Judged, before: list[UpdateResult], *, of: int) -> UpdateResult:
        """One update. before: those of the step that are done. of: how many it has. What is skipped is kept apart."""
        (groups, judgement), number, updates = trained, len(before) + 1, self._learner.updates
        place = bad_updates.Place(self._standing.position.step + 1, number, of, updates)

        def keep(result: UpdateResult) -> str:
            name = type(self._learner.objective).__name__
            return bad_updates.keep(self._directory, place, groups, judgement, result, self._config, name)

        def completed(result: UpdateResult) -> None:
            if result.skipped and self._ranks.is_first:
                note = (
                    CUT_REMEDY
                    if result.skipped == ALL_CUT
                    else f"the weights were left as they were, and {keep(result)}"
                )
                logger.warning(
                    "step %d: update %d of %d was skipped: %s; %s", place.step, number, of, result.skipped, note
                )
            self._standing.update_done(under_way, [*before, result])

        try:
            return self._learner.update(groups, penalty=judgement.penalty, reward=judgement.reward, completed=completed)
        except NonFiniteError as stop:
            if stop.result is None or stop.result.skipped == ALL_CUT or not self._ranks.is_first:
                raise
            with deferred_interrupt():
                raise NonFiniteError(f"{stop}; {keep(stop.result)}", stop.result) from stop

    def _judged(self, groups: list[Group]) -> Judged:
        """Judge the groups once: a reward of the user's may be slow, or random."""
        judgement: Any = None
        with self._ranks.together():
            if self._ranks.is_first:
                judgement = self._judge(groups)
        return Judged(groups, self._ranks.from_first(judgement))


def first_done(updates: Sequence[Update]) -> Update:
    """The step's first update that was not skipped; the first where all were."""
    return next((update for update in updates if not update.result.skipped), updates[0])
