"""Make the sampler that the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fastflow.config.schema import RolloutConfig
from fastflow.data.trajectory import Prompt
from fastflow.models.packed import PackedModel
from fastflow.models.tokenizer import end_ids
from fastflow.rollout.admission import context_for
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import OnProgress, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_sampler(
    policy: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    *,
    on_progress: OnProgress,
    room: int = 0,
) -> Sampler:
    """Return a sampler for the policy. An engine's own packages are imported only when it is chosen.

    prompts: all prompts of the run; the longest decides the context that an engine must have room for. room: tokens of
    the longest that is sampled beside them, such as an evaluation's questions.
    """
    eos_ids = end_ids(policy, tokenizer)
    if rollout.engine == "local":
        return LocalSampler(
            policy,
            tokenizer=tokenizer,
            eos_ids=eos_ids,
            max_sequences=rollout.max_sequences,
            on_progress=on_progress,
        )
    context = max(room, context_for(policy, prompts, rollout.max_response_tokens))
    if rollout.engine == "vllm-server":
        from fastflow.rollout.server.sampler import ServerSampler

        return ServerSampler(
            policy,
            eos_ids=eos_ids,
            context=context,
            servers=rollout.servers,
            folder=rollout.shared_folder,
            max_sequences=rollout.max_sequences,
            silence=rollout.silence,
            on_progress=on_progress,
        )
    from fastflow.rollout.vllm.sampler import VllmSampler

    return VllmSampler(
        policy,
        tokenizer=tokenizer if rollout.stop else None,
        eos_ids=eos_ids,
        context=context,
        max_sequences=rollout.max_sequences,
        memory_fraction=rollout.memory_fraction,
        sleep=resolve_sleep(rollout, policy),
        startup=rollout.startup,
        silence=rollout.silence,
        restarts=rollout.restarts,
        adapters=rollout.adapters,
        on_progress=on_progress,
    )


def resolve_sleep(rollout: RolloutConfig, policy: PackedModel) -> Literal["off", "weights-to-cpu", "drop-weights"]:
    """Return `rollout.sleep`, with `auto` replaced by what it means on the policy's device."""
    if rollout.sleep != "auto":
        return rollout.sleep
    return "drop-weights" if policy.device.type == "cuda" and not rollout.ahead else "off"
