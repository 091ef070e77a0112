"""`fastflow doctor --vllm`: start a real engine with a model of nine thousand parameters, and sample from it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastflow.doctor import vllm
from fastflow.doctor.check import BROKEN, MISSING, OK, Check
from fastflow.errors import FastflowError, message_of

if TYPE_CHECKING:
    from fastflow.models.packed import PackedModel
    from fastflow.rollout.sampler import Sampler

NAME = "vllm, started"
CONTEXT, SEQUENCES, RESPONSES = 48, 8, 8
WIDTH = 32  # of the only head; vLLM on a CPU takes no narrower heads
# Nats, for one token. bfloat16 on a GPU, where attention may multiply float32 numbers in TF32; float32 on a CPU.
TOLERANCE = {"cuda": 0.3, "cpu": 1e-3}
MEMORY_FRACTION = 0.05
STARTUP, SILENCE = 180.0, 60.0


def check_engine(cuda: bool) -> Check:
    """Load weights into vLLM, sample, and compare the log-probs that it reports with the trainer's."""
    from fastflow.rollout.vllm.sampler import VllmSampler

    device, start = "cuda" if cuda else "cpu", time.perf_counter()
    policy = tiny_policy(device)
    try:
        sampler = VllmSampler(
            policy, eos_ids=[0], context=CONTEXT, max_sequences=SEQUENCES, memory_fraction=MEMORY_FRACTION,
            startup=STARTUP, silence=SILENCE, restarts=0,
        )  # fmt: skip
        ready = time.perf_counter() - start
        try:
            difference = largest_difference(sampler, policy)
        finally:
            sampler.close()
    except FastflowError as error:
        return Check(NAME, BROKEN, message_of(error, most=600), _remedy(cuda))
    found = f"ready in {ready:.0f} s; the log-probs of its samples are within {difference:.0e} nats of the trainer's"
    if not difference <= TOLERANCE[device]:
        found = f"ready in {ready:.0f} s, but its log-probs are {difference:.2g} nats away from the trainer's"
        return Check(NAME, BROKEN, found, "set rollout.engine = local, and report this table")
    return Check(NAME, OK, found)


def _remedy(cuda: bool) -> str:
    """Return what to do. A new installation helps only where vLLM cannot be imported."""
    if vllm.check_vllm(cuda)[0].state in (BROKEN, MISSING):
        return f"{vllm.install_command(cuda)}, or set rollout.engine = local"
    return "see the reason in the table; fastflow plan estimates the memory of a run; or set rollout.engine = local"


def tiny_policy(device: str) -> PackedModel:
    """Return a randomly initialised Llama with one layer and one head, in bfloat16 on a GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fastflow.models.packed import PackedModel

    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = LlamaForCausalLM(config)
        torch.nn.Module.to(model, device, dtype)  # transformers wraps its own, and hides the types
        return PackedModel(model)


def largest_difference(sampler: Sampler, policy: PackedModel) -> float:
    """Sample a few responses. Returns the largest difference of a token's log-probs, in nats."""
    import numpy as np

    from fastflow.data.trajectory import Prompt, flatten
    from fastflow.models.share import rescore
    from fastflow.rollout.sampler import Request, SamplingParams

    request = Request(Prompt(np.array([1, 2, 3], dtype=np.int64)), tuple(range(RESPONSES)))
    groups = sampler.sample([request], SamplingParams(max_response_tokens=16))
    pairs = zip(flatten(groups), flatten(rescore(policy, groups, 10**6)), strict=True)
    return max(float(abs(theirs.behaviour_logprobs - ours.behaviour_logprobs).max()) for theirs, ours in pairs)
