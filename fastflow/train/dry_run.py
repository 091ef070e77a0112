"""`fastflow train --dry-run`: check all that needs neither a model's weights nor a hub."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastflow.config.methods import ANSWER, OFFLINE
from fastflow.config.program import NO_PROGRAM
from fastflow.config.schema import Config, ModelConfig
from fastflow.counted import counted
from fastflow.data import Record, is_file, is_gym, read_records, recorded, tokenize
from fastflow.data.first_prompt import describe_first
from fastflow.data.stream import warn_of_few
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.models.layers.decoder_layers import check_compiler
from fastflow.models.layers.fused_layers import choose_layers
from fastflow.models.tokenizer import end_ids_in_files, load_tokenizer
from fastflow.models.weights.files import check_files
from fastflow.models.weights.loading import read_config
from fastflow.objectives.judging import make_format_check
from fastflow.objectives.own_function import OwnFunction
from fastflow.rollout.admission import check_context
from fastflow.run.directory import check_inputs_survive, check_output
from fastflow.run.recorder import check_sinks
from fastflow.train.answers import read_answers
from fastflow.train.evaluation import find_tasks, read_works

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NO_PROMPT = "No prompt to show"


def check_inputs(config: Config) -> str:
    """Raise FastflowError for what would stop the run: missing inputs or packages, bad functions or records.

    Returns the first prompt as the model will see it, otherwise why it cannot be shown.
    """
    config.require_inputs()
    NO_PROGRAM.check(config)
    check_sinks(config)
    check_layers(config.model)
    for model in filter(None, (config.model.path, config.model.base)):
        check_files(model)
    policy = _read_models(config.model)
    if policy is not None:
        check_context(policy, (), config.rollout.max_response_tokens)
    make_format_check(config.objective)
    if config.objective.reward not in (None, ANSWER):
        OwnFunction("objective.reward", config.objective.reward)
    read_works([task for task in find_tasks(config) if task.path], config)
    if not is_gym(config.data) and not (is_file(config.data) and os.path.exists(config.data.path)):
        return f"{NO_PROMPT}: data.path is not a file on this machine."
    return first_prompt(config, read_records(config.data), policy)


def _read_models(settings: ModelConfig) -> PretrainedConfig | None:
    """Read the configurations that are on this machine. Returns the policy's; None where it is elsewhere.

    Raises FastflowError for models that fastflow does not train.
    """
    here = [path for path in (settings.base, settings.path) if path and Path(path).is_dir()]
    found = {path: read_config(path, trust_remote_code=settings.trust_remote_code) for path in here}
    return found.get(settings.path)


def warn_of_output(config: Config) -> None:
    """Warn where a new run could not have the directory that the settings name for it."""
    output = Path(config.run.output)
    try:
        check_output(output, overwrite=config.run.overwrite)
        check_inputs_survive(output, config)
    except FastflowError as error:
        logger.warning("as it is now, this run would not start: %s", error)


def first_prompt(config: Config, records: list[Record], policy: PretrainedConfig | None) -> str:
    """Render and tokenise all prompts, and describe the first, where the tokenizer is on this machine.

    policy: its configuration, where that is here. Raises FastflowError for a prompt that does not fit its context.
    """
    model = config.model
    if Path(model.path).is_dir():
        tokenizer = load_tokenizer(model)
    else:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                model.path, trust_remote_code=model.trust_remote_code, local_files_only=True
            )
        except Exception:  # a hub id that was never fetched raises errors of many types
            return f"{NO_PROMPT}: the tokenizer of {model.path} is not on this machine."
    if config.objective.name in OFFLINE:
        limit, ends = config.rollout.max_response_tokens, end_ids_in_files(model.path, tokenizer, fetch=False)
        known = recorded.read_recorded(records, tokenizer, config.data, max_response_tokens=limit, end_ids=ends)
        _check_prompts(config, known, policy)
        return _describe_recorded(config, known, tokenizer)
    prompts = tokenize(records, tokenizer, config.data)
    if config.objective.reward == ANSWER:
        read_answers(config.objective, prompts).close()
    _check_prompts(config, prompts, policy)
    return describe_first(prompts, tokenizer, config.data)


def _check_prompts(config: Config, prompts: Sequence[Prompt], policy: PretrainedConfig | None) -> None:
    warn_of_few(prompts, config.batch.prompts_per_step)
    if policy is not None:
        check_context(policy, prompts, config.rollout.max_response_tokens)


def _describe_recorded(
    config: Config, prompts: Sequence[recorded.RecordedPrompt], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Describe the first prompt and what is recorded of it, as the tokens spell them."""
    first = prompts[0]
    response = first.responses[0]
    ending = {"stop": "ended", "length": "cut, so that it teaches no end"}[response.finish_reason]
    return "\n".join([
        recorded.describe(
            prompts, config.batch.prompts_per_step, config.run.steps, config.batch.responses_per_prompt
        ),
        f"The first, {first.source}, in {len(first.ids)} and {counted(len(response), 'token')}; it {ending}:",
        f"  prompt    {json.dumps(tokenizer.decode(first.ids.tolist()), ensure_ascii=False)}",
        f"  response  {json.dumps(tokenizer.decode(response.response_ids.tolist()), ensure_ascii=False)}",
    ])  # fmt: skip


def check_layers(settings: ModelConfig) -> None:
    """Raise FastflowError where the settings name layers that this machine cannot run."""
    if settings.fused_layers != "liger" and settings.compile == "off":
        return
    from fastflow.models.opening import resolve_device

    device = resolve_device(settings.device)
    if settings.fused_layers == "liger":
        choose_layers(settings.fused_layers, device)
    if settings.compile == "layers":
        check_compiler(device)
