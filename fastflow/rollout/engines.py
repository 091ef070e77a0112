"""The sampler that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastflow.config.schema import RolloutConfig
from fastflow.data.trajectory import Prompt
from fastflow.models.packed import PackedModel, end_ids
from fastflow.rollout.admission import context_for
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_sampler(
    policy: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rollout: RolloutConfig,
    *,
    on_progress: Callable[[int], None],
) -> Sampler:
    """A sampler for the policy; what another engine needs is imported only where it is asked for.

    prompts: all of the run's, of which the longest decides the context that an engine must have room for.
    """
    options = {
        "eos_ids": end_ids(policy, tokenizer),
        "max_sequences": rollout.max_sequences,
        "on_progress": on_progress,
    }
    if rollout.engine == "local":
        return LocalSampler(policy, tokenizer=tokenizer, **options)
    options["context"] = context_for(policy, prompts, rollout.max_response_tokens)
    options["silence"] = rollout.silence
    if rollout.engine == "vllm-server":
        from fastflow.rollout.server.sampler import ServerSampler

        return ServerSampler(policy, servers=rollout.servers, folder=rollout.shared_folder, **options)
    from fastflow.rollout.vllm.sampler import VllmSampler

    return VllmSampler(
        policy,
        tokenizer=tokenizer if rollout.stop else None,
        memory_fraction=rollout.memory_fraction,
        sleep=resolve_sleep(rollout, policy),
        startup=rollout.startup,
        restarts=rollout.restarts,
        adapters=rollout.adapters,
        **options,
    )


def resolve_sleep(rollout: RolloutConfig, policy: PackedModel) -> str:
    """What `rollout.sleep = auto` stands for."""
    if rollout.sleep != "auto":
        return rollout.sleep
    return "drop-weights" if policy.device.type == "cuda" and not rollout.ahead else "off"
