"""How many sequences a run samples at once, and how long they are: in training, and in an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastflow.config.methods import OFFLINE
from fastflow.config.schema import Config


@dataclass(frozen=True)
class Sampled:
    """What one rank decodes together.

    length: tokens of prompt and response. limit: of the response. top_p: its nucleus. setting: that gives the limit.
    """

    sequences: int
    length: int
    limit: int
    top_p: float
    setting: str = "rollout.max_response_tokens"
    note: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of all sequences at their full length."""
        return self.sequences * self.length


def longest_sequence(config: Config) -> int:
    """Return the tokens of the longest prompt and response that training reads: the last one predicts nothing."""
    return config.data.max_prompt_tokens + config.rollout.max_response_tokens - 1


def sequences_at_once(config: Config, ranks: int = 1) -> int:
    """Return the number of responses that one rank decodes together, the most of training and evaluation."""
    return max(sampled.sequences for sampled in samplings(config, ranks))


def most(config: Config, ranks: int, measure: Callable[[Sampled], int]) -> Sampled:
    """Return what a run samples with the highest measure; training where it equals an evaluation."""
    return max(samplings(config, ranks), key=measure)


def samplings(config: Config, ranks: int = 1) -> list[Sampled]:
    """Return what training samples, then what an evaluation does where the run makes one.

    An evaluation's questions are not read here: each counts as data.max_prompt_tokens, and without eval.limit there are
    enough to fill rollout.max_sequences.
    """
    rollout, settings, prompt = config.rollout, config.eval, config.data.max_prompt_tokens
    responses = config.batch.prompts_per_step * config.batch.responses_per_prompt
    limit = rollout.max_response_tokens
    found = [Sampled(_at_once(config, responses, ranks), prompt + limit, limit, rollout.top_p)]
    if settings.every and config.objective.name not in OFFLINE:
        asked = settings.limit * settings.samples or rollout.max_sequences * ranks
        setting = "eval.max_response_tokens" if settings.max_response_tokens else "rollout.max_response_tokens"
        limit = settings.max_response_tokens or limit
        top_p = settings.top_p if settings.temperature else 1.0
        note = " in an evaluation"
        found.append(Sampled(_at_once(config, asked, ranks), prompt + limit, limit, top_p, setting, note))
    return found


def _at_once(config: Config, responses: int, ranks: int) -> int:
    return min(config.rollout.max_sequences, -(-responses // ranks))
