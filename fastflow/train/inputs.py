"""What a run starts from: read, checked, and compared over the ranks, in the order of its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastflow.config.methods import OFFLINE
from fastflow.config.program import NO_PROGRAM, Program
from fastflow.config.schema import Config, ObjectiveConfig
from fastflow.data import Record, read_records, tokenize
from fastflow.data.recorded import RecordedPrompt, check_known, read_recorded
from fastflow.data.response_text import check_spelling
from fastflow.data.trajectory import Prompt
from fastflow.models.cut.head import CUT, check_rows
from fastflow.models.cut.sharding import shard_models
from fastflow.models.opening import load_models, load_policy
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.pulse import PULSE, Beating
from fastflow.models.ranks import Ranks
from fastflow.models.self_check import check_models, prepare_models
from fastflow.models.tokenizer import end_ids, end_ids_in_files, load_tokenizer
from fastflow.models.vocabulary import check_tokenizer_fits
from fastflow.objectives.judging import Judge
from fastflow.rollout.admission import check_tokens, context_for
from fastflow.train.answers import read_answers
from fastflow.train.digests import digest_of_base, digest_of_prompts, digest_of_start, digest_of_tokenizer
from fastflow.train.evaluation import Evaluation, find_tasks, read_works
from fastflow.train.resume import versions
from fastflow.train.saves.export import Exporter
from fastflow.train.saves.rehearsal import rehearse
from fastflow.train.state import Identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """What the settings name, read and checked. base: None where the method reads none. longest: tokens of the longest
    prompt with the longest response.
    """

    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]
    judge: Judge
    policy: PackedModel
    base: PackedModel | AdaptersOff | None
    longest: int


class Inputs(NamedTuple):
    """What a run starts from. evaluation: without a task where none is asked for. small_files: the bytes that a save
    holds beside the weights. identity: what the run may not change.
    """

    loaded: Loaded
    evaluation: Evaluation
    exporter: Exporter
    small_files: int
    identity: Identity


def open_inputs(
    config: Config, directory: Path, ranks: Ranks, *, total_updates: int, program: Program = NO_PROGRAM
) -> Inputs:
    """Read and check everything, and cut the models over the ranks. A collective, which ends on all ranks alike.

    directory: of the run. program: has what the settings cannot name. Raises FastflowError for what does not fit
    together, differs between ranks, or cannot be saved.
    """
    with ranks.together():
        works = read_works(find_tasks(config), config, try_golds=ranks.is_first, program=program)
        loaded = load(config, ranks, program)
        evaluation = Evaluation(works, config, loaded.policy, loaded.tokenizer, directory)
    check_same_everywhere(ranks, loaded, config)
    ranks.check_same("questions in eval.tasks", evaluation.digest)
    with ranks.together():
        exporter, small_files = rehearse_save(loaded, config, directory, ranks)
    cut(loaded, config, ranks)
    return Inputs(loaded, evaluation, exporter, small_files, identify(loaded, config, total_updates))


def load(config: Config, ranks: Ranks, program: Program = NO_PROGRAM) -> Loaded:
    """Read prompts, tokenizer and models. Raises FastflowError for what does not fit together, or not these ranks.

    Where there are several ranks, weights stay in their files until `cut`.
    """
    with PULSE.patient():  # a library may make or fetch them
        records = Beating(read_records(config.data, program))
    tokenizer = load_tokenizer(config.model)
    prompts = read_prompts(config, records, tokenizer)
    judge = make_judge(config.objective, tokenizer, prompts, program, try_golds=ranks.is_first)
    for text in config.rollout.stop:
        check_spelling(tokenizer, "rollout.stop", text)
    several, base = ranks.count > 1, None
    if config.reads_base:
        policy, base = load_models(config.model, config.lora, to_be_cut=several)
    else:
        policy = load_policy(config.model, config.lora, to_be_cut=several)
    check_tokenizer_fits(tokenizer, policy, config.model)
    longest = context_for(policy, prompts, config.rollout.max_response_tokens)
    prepare_models(policy, base, longest=longest, names=names_of(config))
    check_known([prompt for prompt in prompts if isinstance(prompt, RecordedPrompt)], policy.vocab_size)
    check_tokens(policy, prompts)
    if config.model.head == CUT and several:
        each = ranks.count // ranks.replicas
        check_rows(config.model.path, policy.vocab_size, each)
        if isinstance(base, PackedModel):
            check_rows(config.model.base or config.model.path, base.vocab_size, each)
    judge.end_with(end_ids(policy, tokenizer))
    return Loaded(tokenizer, prompts, judge, policy, base, longest)


def cut(loaded: Loaded, config: Config, ranks: Ranks) -> None:
    """Cut the models over the ranks, and prove on them that packing changes nothing. Raises FastflowError for weights
    that cannot be read, and for models that cannot read packed batches.
    """
    shard_models(loaded.policy, loaded.base, ranks, head=config.model.head)
    with ranks.together():  # a proof that fails does so on all of them
        check_models(loaded.policy, loaded.base, longest=loaded.longest, names=names_of(config))


def names_of(config: Config) -> tuple[str, str]:
    """Return the names of policy and base."""
    return config.model.path, config.model.base or config.model.path


def read_prompts(config: Config, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Tokenise the records: prompts, with their recorded responses where the method learns from these."""
    if config.objective.name not in OFFLINE:
        return tokenize(records, tokenizer, config.data)
    limit, ends = config.rollout.max_response_tokens, end_ids_in_files(config.model.path, tokenizer, fetch=True)
    return list(read_recorded(records, tokenizer, config.data, max_response_tokens=limit, end_ids=ends))


def make_judge(
    settings: ObjectiveConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    program: Program,
    *,
    try_golds: bool,
) -> Judge:
    """Make the judge of a run. try_golds: whether the records' answers are graded too.

    Raises FastflowError where a reward needs answers that the records do not have, or that no response can equal.
    """
    if not settings.compares_answers:
        return Judge(settings, tokenizer, program=program)
    return Judge(settings, tokenizer, read_answers(settings, prompts, try_golds=try_golds), program)


def identify(loaded: Loaded, config: Config, total_updates: int) -> Identity:
    """Say what the run may not change. A collective, once the models are cut."""
    prompts = digest_of_prompts(loaded.prompts, with_records=reads_records(config.objective))
    tokenizer = digest_of_tokenizer(loaded.tokenizer, end_ids(loaded.policy, loaded.tokenizer))
    return Identity(prompts, digest_of_base(loaded.base, loaded.policy), total_updates, versions(), tokenizer)


def reads_records(settings: ObjectiveConfig) -> bool:
    """Whether a reward or a format check reads the prompts' records."""
    return settings.reward is not None or settings.format_check is not None


def check_same_everywhere(ranks: Ranks, loaded: Loaded, config: Config) -> None:
    """Raise FastflowError where the ranks have not loaded the same. The models are not cut yet."""
    if ranks.count == 1:
        return
    ranks.check_same("versions of Python, torch, transformers or numpy", versions())
    prompts = digest_of_prompts(loaded.prompts, with_records=reads_records(config.objective))
    ranks.check_same("prompts", prompts)
    tokenizer = digest_of_tokenizer(loaded.tokenizer, end_ids(loaded.policy, loaded.tokenizer))
    ranks.check_same("tokens in the tokenizer", tokenizer)
    with ranks.together():
        base = digest_of_start(loaded.base) if isinstance(loaded.base, PackedModel) else ""
        policy = digest_of_start(loaded.policy)
    ranks.check_same("weights in the base", base)
    ranks.check_same("weights or buffers in the policy", policy)


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
