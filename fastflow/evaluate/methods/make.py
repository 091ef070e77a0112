"""Make the method that the settings ask for, over the engine that they ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from fastflow.config.schema import RolloutConfig
from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Prompt
from fastflow.evaluate.graders.pool import GraderPool
from fastflow.evaluate.methods.answer import Method
from fastflow.evaluate.methods.catalogue import MethodSettings
from fastflow.evaluate.methods.chosen import chosen_of_several, likeliest, most_frequent
from fastflow.evaluate.methods.drawn import beam_search, plain_sampling, power_sampling
from fastflow.evaluate.methods.verbalized import verbalized_sampling
from fastflow.models.packed import PackedModel
from fastflow.models.tokenizer import end_ids
from fastflow.rollout.beam import BeamSearch
from fastflow.rollout.engines import make_sampler
from fastflow.rollout.power.sampler import PowerSampler
from fastflow.rollout.sampler import OnProgress, SamplingParams, unheard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COUNTED_BY_ENGINE = ("sample", "low_temperature", "verbalized")  # whose samples are their answers


@contextmanager
def made_method(
    settings: MethodSettings,
    policy: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    params: SamplingParams,
    pool: GraderPool,
    *,
    on_progress: OnProgress,
) -> Iterator[Method]:
    """Give the method, with the policy's weights in the engine; the engine is closed afterwards.

    prompts: all that will be asked; see make_sampler. on_progress: told of answers that are there.
    """
    name, number, count = settings.name, settings.number, settings.count
    text = ResponseText(tokenizer, end_ids(policy, tokenizer))
    if name == "beam":
        search = BeamSearch(policy, eos_ids=end_ids(policy, tokenizer), beams=count("candidates"))
        yield beam_search(search, text, params, on_progress)
        return
    told = on_progress if name in _COUNTED_BY_ENGINE else unheard  # the method counts
    with closing(make_sampler(policy, tokenizer, prompts, rollout, on_progress=told)) as sampler:
        sampler.load_weights(policy)
        if name == "low_temperature":
            yield plain_sampling(sampler, text, dataclasses.replace(params, temperature=1 / number("alpha")))
        elif name == "verbalized":
            yield verbalized_sampling(
                sampler, text, params, count=lambda said: len(tokenizer(said, add_special_tokens=False)["input_ids"])
            )
        elif name in ("best_of_n", "majority_vote"):
            is_best = name == "best_of_n"
            choice = likeliest(policy, params, rollout.engine) if is_best else most_frequent(text, pool)
            yield chosen_of_several(
                sampler, text, params, candidates=count("candidates"), choice=choice, on_progress=on_progress
            )
        elif name == "power_smc":
            power = PowerSampler.smc(
                sampler, policy, alpha=number("alpha"), block=count("block"), particles=count("particles"),
                on_progress=on_progress,
            )  # fmt: skip
            yield power_sampling(power, text, params)
        elif name in ("mcmc_exact", "mcmc_published"):
            power = PowerSampler.mcmc(
                sampler, policy, alpha=number("alpha"), block=count("block"), steps=count("steps"),
                form="exact" if name == "mcmc_exact" else "published", on_progress=on_progress,
            )  # fmt: skip
            yield power_sampling(power, text, params)
        else:
            yield plain_sampling(sampler, text, params)
