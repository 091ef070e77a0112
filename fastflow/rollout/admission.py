"""Refuse prompts that do not fit the model's context or vocabulary, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastflow.counted import counted
from fastflow.data.trajectory import Prompt
from fastflow.errors import FastflowError
from fastflow.models.layers.rope import check_pass, context_of, kinds
from fastflow.models.packed import PackedModel
from fastflow.rollout.sampler import Request, SamplingParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_requests(policy: PackedModel, requests: Sequence[Request], params: SamplingParams) -> None:
    """Raise FastflowError for the first prompt that is empty, names an unknown token or leaves no room."""
    check_tokens(policy, [request.prompt for request in requests])

    def tokens(request: Request) -> int:
        return len(request.prompt.ids) + request.length_limit(params)

    longest = max(requests, key=tokens, default=None)
    if longest is not None:
        check_room(policy, [longest.prompt], longest.length_limit(params))
    check_pass(policy.causal_lm, params.max_response_tokens if longest is None else tokens(longest))


def check_tokens(policy: PackedModel, prompts: Sequence[Prompt]) -> None:
    """Raise FastflowError for the first prompt that is empty or names an unknown token."""
    rows = policy.vocab_size
    for number, prompt in enumerate(prompts, start=1):
        name = prompt.source or f"prompt {number}"
        if len(prompt.ids) == 0:
            raise FastflowError(f"{name} has no tokens; remove it")
        if prompt.ids.min() < 0 or prompt.ids.max() >= rows:
            wrong = next(int(token) for token in prompt.ids if not 0 <= token < rows)
            raise FastflowError(
                f"{name} holds token {wrong}, but the model's head has {rows} rows: it was tokenised for another "
                "model, or spells a special token that this model never reads; remove it"
            )


def check_room(policy: PackedModel, prompts: Sequence[Prompt], max_response_tokens: int) -> None:
    """Raise FastflowError when a prompt and its longest response exceed the model's context."""
    check_context(policy.causal_lm.config, prompts, max_response_tokens)


def check_context(config: PretrainedConfig, prompts: Sequence[Prompt], max_response_tokens: int) -> None:
    """Raise FastflowError when a response alone, or with its prompt, exceeds the context of this configuration."""
    context = context_of(config)
    longest = max(prompts, key=lambda prompt: len(prompt.ids), default=None)
    if context is None:
        return
    setting, reach = "rollout.max_response_tokens", f"the model's context of {context}{_up_to_here(config)}"
    if longest is not None and len(longest.ids) + max_response_tokens > context:
        remedies = ["data.max_prompt_tokens"] if max_response_tokens < context else []  # otherwise it cannot help
        raise FastflowError(
            f"{longest.source or 'a prompt'} has {counted(len(longest.ids), 'token')}; with {setting} = "
            f"{max_response_tokens} that exceeds {reach}; lower {' or '.join([*remedies, setting])}"
        )
    if max_response_tokens >= context:
        raise FastflowError(
            f"{setting} = {max_response_tokens} leaves no room for a prompt in {reach}; lower it below the context"
        )


def context_for(policy: PackedModel, prompts: Sequence[Prompt], max_response_tokens: int) -> int:
    """Return the tokens of the longest prompt and its response, and check that the model has room for them."""
    check_room(policy, prompts, max_response_tokens)
    return max(len(prompt.ids) for prompt in prompts) + max_response_tokens


def _up_to_here(config: PretrainedConfig) -> str:
    """Say why a dynamically scaled context ends there; empty for every other context."""
    if "dynamic" not in kinds(config):
        return ""
    return ", up to which its position embeddings (dynamic) do not depend on the longest sequence of a pass"
