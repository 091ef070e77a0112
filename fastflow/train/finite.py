"""Numbers gone bad: when an update is skipped, how often that may happen, and what is said."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from fastflow.config.methods import OFFLINE
from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.data.update import UpdateResult
from fastflow.errors import FastflowError
from fastflow.objectives.objective import Facts

NAMES = {
    "base_logprob": "the base's log-prob",
    "behaviour_logprob": "the sampler's log-prob",
    "penalty": "the penalty",
    "reward": "the reward",
}


ALL_CUT = "every response reached the length limit, and objective.truncated = drop leaves none to learn from"
CUT_REMEDY = "raise rollout.max_response_tokens, or set objective.truncated = keep"


class NonFiniteError(FastflowError):
    """Too many updates in a row were skipped; the policy still has its last finite weights. result: of the last."""

    def __init__(self, message: str, result: UpdateResult | None = None):
        super().__init__(message)
        self.result = result


class Skips(NamedTuple):
    """Updates that a run has skipped. total: in all. in_a_row: since the last one that was done."""

    total: int = 0
    in_a_row: int = 0

    def one_more(self) -> Skips:
        return Skips(self.total + 1, self.in_a_row + 1)

    def ended(self) -> Skips:
        return Skips(self.total, 0)


NONE_SKIPPED = Skips()


def unknown_facts(config: Config) -> tuple[str, ...]:
    """What nobody computes under these settings: without a base, and of recorded responses."""
    of_base = () if config.reads_base else ("base_logprob",)
    return (*of_base, "behaviour_logprob") if config.objective.name in OFFLINE else of_base


def unusable(facts: Facts, unknown: Collection[str] = ()) -> str:
    """Say why no update can be made of these facts: some are not finite, or all responses are left out. Empty where one
    can.

    unknown: facts that nobody asks for.
    """
    for name, words in NAMES.items():
        if name in unknown:
            continue
        bad = int((~getattr(facts, name).isfinite()).sum())
        if bad:
            return f"{words} of {bad} of {counted(len(facts.length), 'response')} is not finite"
    return ALL_CUT if facts.left_out.all() else ""


def not_finite(loss: float, norms: Sequence[float]) -> str:
    """Say so where a loss or a gradient norm is not finite. norms: of the policy, then of log_z where that is learned.
    Empty where all are finite.
    """
    if all(math.isfinite(value) for value in (loss, *norms)):
        return ""
    of = "policy, log_z" if len(norms) > 1 else "policy"
    return f"the loss is {loss:g} and the gradient norm {' and '.join(f'{norm:g}' for norm in norms)} ({of})"


def last_straw(result: UpdateResult, update: int, skips: Skips) -> NonFiniteError:
    """Make the error that ends the run. update: the one that failed, from 1. skips: before it."""
    before = f"; skipped before it: {counted(skips.in_a_row, 'update')}" if skips.in_a_row else ""
    remedy = "lower optim.lr or optim.max_grad_norm, or check the model for NaN"
    return NonFiniteError(
        f"{result.skipped} in update {update}{before}; the weights were left as they were: "
        f"{CUT_REMEDY if result.skipped == ALL_CUT else remedy}",
        result,
    )


def all_skipped(skips: Skips) -> NonFiniteError:
    """Make the error that ends a run without a single update."""
    return NonFiniteError(
        f"every update of the run was skipped ({skips.total} in all), each for the reason that its warning names: "
        "nothing was learned; mend that, and look into kept batches with fastflow replay"
    )
