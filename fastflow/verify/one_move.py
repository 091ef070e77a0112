"""One move of a chain, exactly: from a distribution over all responses, over every position and every new tail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastflow.data.trajectory import Prompt
from fastflow.models.packed import PackedModel
from fastflow.rollout.power.mcmc import Form, log_acceptance
from fastflow.rollout.power.proposal import score
from fastflow.rollout.power.walk import Tail
from fastflow.verify.exact import SequenceSpace


def scored_responses(policy: PackedModel, prompt: Prompt, space: SequenceSpace, alpha: float) -> list[Tail]:
    """Return every response with both log-probs: of the policy, and of the proposal at temperature 1 / alpha."""
    (log_p,) = score(policy, [space.group(prompt)])
    responses = list(zip(space.responses, log_p, strict=True))
    powers = {ids[: t + 1]: alpha * scores[t] for ids, scores in responses for t in range(len(ids))}

    def log_q(prefix: tuple[int, ...]) -> float:
        beside = [powers[(*prefix[:-1], token)] for token in range(space.vocab_size)]
        return float(powers[prefix] - np.logaddexp.reduce(beside))

    return [
        Tail(np.array(ids), scores, np.array([log_q(ids[: t + 1]) for t in range(len(ids))]), ids[-1] == space.eos_id)
        for ids, scores in responses
    ]


def power(responses: Sequence[Tail], alpha: float) -> np.ndarray:
    """Compute p^alpha (n,) of all responses, normalised."""
    log_weights = alpha * np.array([response.log_p.sum() for response in responses])
    return np.exp(log_weights - np.logaddexp.reduce(log_weights))


def after_one_move(before: np.ndarray, responses: Sequence[Tail], *, alpha: float, form: Form) -> np.ndarray:
    """Compute the distribution (n + 1,) after one move from `before` (n,), under the length limit of the responses.

    Its last entry is the share of responses that are none of the n, since they were cut short of the limit.
    """
    place = {tuple(response.ids.tolist()): at for at, response in enumerate(responses)}
    after = np.zeros(len(responses) + 1)
    for at, current in enumerate(responses):
        for kept in range(len(current)):
            present = current.after(kept)
            for whole in responses:
                if not np.array_equal(whole.ids[:kept], current.ids[:kept]):
                    continue
                new = whole if form == "exact" else whole.first(len(current))
                ratio = log_acceptance(present, new.after(kept), kept=kept, alpha=alpha, form=form)
                proposed = before[at] / len(current) * math.exp(whole.after(kept).log_q.sum())
                taken = proposed * math.exp(min(0.0, ratio))
                after[place.get(tuple(new.ids.tolist()), -1)] += taken
                after[at] += proposed - taken
    return after
