"""Make the method that the settings ask for, over the engine that they ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from fastflow.config.schema import RolloutConfig
from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Prompt
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.methods.answer import Method
from fastflow.evaluate.methods.catalogue import MethodSettings
from fastflow.evaluate.methods.chosen import ChosenOfSeveral, Likeliest, MostFrequent
from fastflow.evaluate.methods.drawn import BeamAnswers, PlainSampling, PowerSampling
from fastflow.evaluate.methods.verbalized import VerbalizedSampling
from fastflow.evaluate.task import Task
from fastflow.models.packed import PackedModel
from fastflow.models.tokenizer import end_ids
from fastflow.rollout.beam import BeamSearch
from fastflow.rollout.engines import make_sampler
from fastflow.rollout.power.sampler import PowerSampler
from fastflow.rollout.sampler import OnProgress, SamplingParams, unheard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COUNTED_BY_ENGINE = ("sample", "low_temperature", "verbalized")  # whose samples are their answers
MethodOf = Callable[[Task], Method]


@contextmanager
def methods_for(
    settings: MethodSettings,
    policy: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    params: SamplingParams,
    pool: GraderPool,
    *,
    on_progress: OnProgress,
) -> Iterator[MethodOf]:
    """Give the method for each task, with the policy's weights in the engine; the engine is closed afterwards.

    prompts: all that will be asked; see make_sampler. on_progress: told of answers that are there.
    """
    text = ResponseText(tokenizer, end_ids(policy, tokenizer))
    if settings.name == "beam":
        search = BeamSearch(policy, eos_ids=end_ids(policy, tokenizer), beams=settings.count("candidates"))
        yield lambda task: BeamAnswers(search, text, params, on_progress)
        return
    told = on_progress if settings.name in _COUNTED_BY_ENGINE else unheard  # the method counts
    with closing(make_sampler(policy, tokenizer, prompts, rollout, on_progress=told)) as sampler:
        sampler.load_weights(policy)

        def make(task: Task) -> Method:
            if settings.name == "low_temperature":
                return PlainSampling(
                    sampler, text, dataclasses.replace(params, temperature=1 / settings.number("alpha"))
                )
            if settings.name == "verbalized":
                return VerbalizedSampling(sampler, text, params, count=lambda part: len(_ids(tokenizer, part)))
            if settings.name in ("best_of_n", "majority_vote"):
                is_best = settings.name == "best_of_n"
                choice = Likeliest(policy, params, rollout.engine) if is_best else MostFrequent(text, task, pool)
                return ChosenOfSeveral(
                    sampler, text, params,
                    candidates=settings.count("candidates"), choice=choice, on_progress=on_progress,
                )  # fmt: skip
            if settings.name == "power_smc":
                power = PowerSampler.smc(
                    sampler, policy, alpha=settings.number("alpha"), block=settings.count("block"),
                    particles=settings.count("particles"), on_progress=on_progress,
                )  # fmt: skip
                return PowerSampling(power, text, params)
            if settings.name in ("mcmc_exact", "mcmc_published"):
                power = PowerSampler.mcmc(
                    sampler, policy, alpha=settings.number("alpha"), block=settings.count("block"),
                    steps=settings.count("steps"), form="exact" if settings.name == "mcmc_exact" else "published",
                    on_progress=on_progress,
                )  # fmt: skip
                return PowerSampling(power, text, params)
            return PlainSampling(sampler, text, params)

        yield make


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
