"""Rotary position embeddings with scaled frequencies: how long a context is, and what depends on one pass.

Most kinds (linear, yarn, llama3) scale in the same way at every length. In transformers, two kinds depend on the
longest sequence of a pass: `dynamic` beyond max_position_embeddings, `longrope` beyond
original_max_position_embeddings. In a packed batch that may be another sequence, and in cached decoding it changes in
the middle of a response.

Up to that length both kinds are constant, too. Beyond it, longrope takes its long factors for the whole run, in policy,
base and sampler, as vLLM does from its max_model_len. dynamic is refused: transformers computes it anew for each length
and vLLM once, so the two would not run the same model.
"""

from __future__ import annotations

import copy
import json
import logging
from typing import TYPE_CHECKING, Any

import torch

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

FIXED = "fixed"  # with this rope_type, transformers no longer changes the frequencies


def context_of(config: PretrainedConfig) -> int | None:
    """Count the tokens of the longest context, scaling included; None where the configuration does not say.

    linear and yarn extend a context by their factor, and a configuration names the length before that. For llama3 and
    longrope it names the length after, and so does one of Gemma for linear. dynamic counts as far as its frequencies
    are constant.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    reach = positions
    for rope in _scalings(config):
        factor = rope.get("factor") or 1.0
        if _kind(rope) == "linear" and getattr(config, "model_type", None) != "gemma3_text":
            reach = max(reach, positions * factor)
        elif _kind(rope) == "yarn":
            reach = max(reach, (rope.get("original_max_position_embeddings") or positions) * factor)
    return int(reach)


def constant_up_to(config: PretrainedConfig) -> int | None:
    """Count the tokens up to which the frequencies do not depend on a pass; None where they never do."""
    limits = []
    for rope in _scalings(config):
        if "dynamic" in _kind(rope):
            limits.append(config.max_position_embeddings)
        elif _kind(rope) == "longrope":
            limits.append(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min(limits, default=None)


def kinds(config: PretrainedConfig) -> str:
    """Name the kinds of scaling, for messages; empty for plain rotary embeddings."""
    return ", ".join(sorted({_kind(rope) for rope in _scalings(config)} - {"default"}))


def check_kinds(path: str, config: PretrainedConfig) -> None:
    """Raise FastflowError for a kind of scaling that transformers does not know."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = {"default", *ROPE_INIT_FUNCTIONS}
    if unknown := sorted({_kind(rope) for rope in _scalings(config)} - known):
        raise FastflowError(
            f"the config.json of {path} scales position embeddings by {unknown[0]!r}, which transformers does not "
            f"know; it knows {', '.join(sorted(known))}"
        )


def fix_frequencies(model: PreTrainedModel, longest: int) -> None:
    """Give a longrope model one set of frequencies for all lengths, where sequences can have `longest` tokens."""
    limit = constant_up_to(model.config)
    if limit is None or longest <= limit:
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    module: Any  # a rotary embedding of transformers, which declares no types for its attributes
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope" and hasattr(module, "inv_freq"):
            frequencies, scaling = ROPE_INIT_FUNCTIONS["longrope"](module.config, module.inv_freq.device, longest)
            module.register_buffer("inv_freq", frequencies, persistent=False)
            module.attention_scaling = scaling
            module.rope_type = FIXED
            logger.info(
                "position embeddings: longrope's long factors for all sequences, since the longest can have %d tokens "
                "and its short factors end at %d", longest, limit,
            )  # fmt: skip


def hold_frequencies(model: PreTrainedModel) -> None:
    """Keep the frequencies that a model was built with, at every length."""
    module: Any
    for module in model.modules():
        if isinstance(kind := getattr(module, "rope_type", None), dict):
            module.rope_type = dict.fromkeys(kind, FIXED)
        elif kind is not None:
            module.rope_type = FIXED


def check_pass(model: PreTrainedModel, longest: int) -> None:
    """Raise FastflowError where frequencies would depend on a pass over sequences of up to `longest` tokens."""
    limit = constant_up_to(model.config)
    if limit is None or longest <= limit:
        return
    if getattr(getattr(model.get_decoder(), "rotary_emb", None), "rope_type", None) == FIXED:
        return
    raise FastflowError(
        f"the model's position embeddings ({kinds(model.config)}) depend on the longest sequence of a pass beyond "
        f"{limit} tokens, and one has {longest}; lower data.max_prompt_tokens or rollout.max_response_tokens"
    )


def for_vllm(config: PretrainedConfig) -> PretrainedConfig:
    """Copy a configuration so that vLLM computes what transformers does in this run.

    vLLM would apply dynamic scaling at every length. The copy has none, since no sequence is over `constant_up_to`.
    vLLM takes max_position_embeddings for the end of a yarn context, but many configurations name the length before
    scaling. It also takes its own scale for longrope's attention.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    context, config = context_of(config), copy.deepcopy(config)
    if "yarn" in kinds(config):
        config.max_position_embeddings = context
    for rope in _scalings(config):
        if "dynamic" in _kind(rope):
            for name in ("factor", "type", "alpha", "original_max_position_embeddings"):
                rope.pop(name, None)
            rope["rope_type"] = "default"
        elif _kind(rope) == "longrope":
            _, rope["short_mscale"] = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
            rope["long_mscale"] = rope["short_mscale"]
    return config


def advice_for_servers(config: PretrainedConfig, longest: int) -> str | None:
    """Say how to start a vLLM server so that it computes what the trainer does; None where every start does.

    longest: tokens of the longest prompt and response of the run.
    """
    limit = constant_up_to(config)
    if "yarn" in kinds(config) and longest > config.max_position_embeddings:
        longer = json.dumps({"max_position_embeddings": context_of(config)})
        return (
            "vLLM takes max_position_embeddings for the end of a yarn context: start the servers with --hf-overrides "
            f"'{longer}'"
        )
    if limit is None or longest > limit:
        return None
    if "dynamic" in kinds(config):
        plain = json.dumps({"rope_parameters": for_vllm(config).rope_parameters}, sort_keys=True)
        return (
            f"vLLM scales dynamic position embeddings at every length: start the servers with --hf-overrides '{plain}'"
        )
    return (
        f"vLLM takes longrope's long factors where its context is over {limit} tokens, and this run the short ones: "
        f"start the servers with --max-model-len {limit} or less"
    )


def _scalings(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Return one entry, or one for each type of layer."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [entry for entry in found.values() if isinstance(entry, dict)]
    return nested or [found]


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")
