"""What a run is put together from, before its first step: inputs in the order of their cost, a save, the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from fastflow.config.methods import ANSWER, OFFLINE
from fastflow.config.schema import Config, ObjectiveConfig, RolloutConfig
from fastflow.data import Record, read_records, tokenize
from fastflow.data.recorded import RecordedPrompt, check_known, read_recorded
from fastflow.data.response_text import check_spelling
from fastflow.data.trajectory import Group, Prompt
from fastflow.models.packed import (
    AdaptersOff,
    FrozenModel,
    PackedModel,
    check_tokenizer_fits,
    end_ids,
    load_models,
    load_policy,
    load_tokenizer,
)
from fastflow.models.pulse import PULSE, Beating
from fastflow.models.ranks import Ranks
from fastflow.models.self_check import check_models
from fastflow.objectives.judging import Judge, needs_answers
from fastflow.rollout.admission import context_for
from fastflow.rollout.recorded import RecordedResponses
from fastflow.rollout.sampler import OverlappingSampler, Request, Sampler, SamplingParams
from fastflow.rollout.schedule import OneAhead, OnPolicy, Schedule
from fastflow.run import directory as run_directory
from fastflow.train.answers import GradedAnswers, check_answers, grader_for
from fastflow.train.checkpoint import named_parameters
from fastflow.train.digests import digest_of_tensors
from fastflow.train.export import Exporter
from fastflow.train.learner import Learner
from fastflow.train.rehearsal import rehearse
from fastflow.train.save_room import check_disk, save_size
from fastflow.train.state import Identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """What the settings name, read and checked. base: None where the method reads none."""

    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]
    judge: Judge
    policy: PackedModel
    base: PackedModel | AdaptersOff | None


def load(config: Config) -> Loaded:
    """Read prompts, tokenizer and models. Raises FastflowError for what does not fit together."""
    offline = config.objective.name in OFFLINE
    with PULSE.patient():  # a library may make or fetch them
        records = Beating(read_records(config.data))
    tokenizer = load_tokenizer(config.model)
    prompts = read_prompts(config, records, tokenizer)
    judge = make_judge(config.objective, tokenizer, prompts)
    for text in config.rollout.stop:
        check_spelling(tokenizer, "rollout.stop", text)
    policy, base = (load_policy(config.model, config.lora), None) if offline else load_models(config.model, config.lora)
    check_tokenizer_fits(tokenizer, policy, config.model)
    longest = context_for(policy, prompts, config.rollout.max_response_tokens)
    check_models(policy, base, longest=longest, names=(config.model.path, config.model.base or config.model.path))
    check_known([prompt for prompt in prompts if isinstance(prompt, RecordedPrompt)], policy.vocab_size)
    judge.end_with(end_ids(policy, tokenizer))
    return Loaded(tokenizer, prompts, judge, policy, base)


def read_prompts(config: Config, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Tokenise the records: prompts, with their recorded responses where the method learns from these."""
    if config.objective.name not in OFFLINE:
        return tokenize(records, tokenizer, config.data)
    limit = config.rollout.max_response_tokens
    return list(read_recorded(records, tokenizer, config.data, max_response_tokens=limit))


def make_recorded(
    policy: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    *,
    on_progress: Callable[[int], None],
    room: int = 0,
) -> Sampler:
    """Make what takes a sampler's place where responses are recorded; called as `make_sampler` is."""
    return RecordedResponses(on_progress)


def make_judge(settings: ObjectiveConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Judge:
    """Make the judge of a run. Raises FastflowError where a reward needs answers that the records do not have."""
    if not needs_answers(settings):
        return Judge(settings, tokenizer)
    if settings.reward == ANSWER:
        check_answers(prompts, settings.answer_field)
    grader = grader_for(settings.grader, prompts) if settings.reward == ANSWER else settings.grader
    return Judge(settings, tokenizer, GradedAnswers(grader, settings.answer_field))


def check_same_everywhere(ranks: Ranks, policy: PackedModel, identity: Identity) -> None:
    """Raise FastflowError where the ranks have not loaded the same."""
    if ranks.count == 1:
        return
    tensors = [*policy.model.named_parameters(), *policy.model.named_buffers()]
    ranks.check_same("versions of Python, torch, transformers or numpy", identity.versions)
    ranks.check_same("prompts", identity.prompts)
    ranks.check_same("tokens in the tokenizer", identity.tokenizer)
    ranks.check_same("weights in the base", identity.base)
    ranks.check_same("weights or buffers in the policy", digest_of_tensors(tensors))


def rehearse_save(loaded: Loaded, config: Config, directory: Path, ranks: Ranks) -> tuple[Exporter, int]:
    """Raise FastflowError now, not after the last step, for what cannot be saved.

    Returns what exports the policy, and the bytes of the small files beside its weights.
    """
    base = loaded.base
    start = base.model if isinstance(base, FrozenModel) and config.model.base is None else None
    if ranks.count > 1:  # the base is cut, and the first rank writes alone
        start = None
    exporter = Exporter(loaded.tokenizer, config.run.export_dtype, start)
    return rehearse(loaded.policy, exporter, config.model, directory) if ranks.is_first else (exporter, 0)


def check_room(learner: Learner, config: Config, directory: Path, small_files: int, *, resumed: bool) -> None:
    """Raise FastflowError where two parameters share a name, or the disk has no room for the run's saves."""
    named_parameters(learner)
    size = save_size(learner, config.run.export_dtype, tokenizer=small_files)
    check_disk(directory, size, config, reclaimed=run_directory.reclaimable(directory, resumed=resumed))


def make_schedule(
    sampler: Sampler,
    policy: PackedModel,
    requests: Callable[[int], Sequence[Request]],
    config: Config,
    *,
    ready: Sequence[Group] | None,
) -> Schedule:
    """Make the schedule that the settings name. ready: groups of the next step, where a save holds them."""
    rollout = config.rollout
    params = SamplingParams(
        rollout.temperature,
        rollout.top_p,
        rollout.max_response_tokens,
        rollout.min_response_tokens,
        rollout.stop,
    )
    if not rollout.ahead:
        return OnPolicy(sampler, policy, requests, params)
    overlapping = cast(OverlappingSampler, sampler)  # Config refuses `ahead` for the others
    return OneAhead(overlapping, policy, requests, params, steps=config.run.steps, ready=ready)
