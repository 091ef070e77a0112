"""`fastflow doctor --vllm`: a real engine over a model of nine thousand parameters, from start to samples."""

from __future__ import annotations

import time

from fastflow.doctor import vllm
from fastflow.doctor.check import BROKEN, MISSING, OK, Check
from fastflow.errors import FastflowError

NAME = "vllm, started"
CONTEXT, SEQUENCES, RESPONSES = 48, 8, 8
WIDTH = 32  # of the only head: vLLM on a CPU takes no narrower ones
# Nats, of one token. bfloat16 on a GPU, whose attention may multiply float32 numbers in TF32; float32 on a CPU.
TOLERANCE = {"cuda": 0.3, "cpu": 1e-3}
MEMORY_FRACTION = 0.05
STARTUP, SILENCE = 180.0, 60.0


def check_engine(cuda: bool) -> Check:
    """Loads the weights, samples, and compares the log-probs that vLLM reports with the trainer's."""
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
        return Check(NAME, BROKEN, " ".join(str(error).split())[:600], _remedy(cuda))
    found = f"ready in {ready:.0f} s; the log-probs of its samples are within {difference:.0e} nats of the trainer's"
    if not difference <= TOLERANCE[device]:
        found = f"ready in {ready:.0f} s, but its log-probs are {difference:.2g} nats away from the trainer's"
        return Check(NAME, BROKEN, found, "rollout.engine = local, and report what this table says")
    return Check(NAME, OK, found)


def _remedy(cuda: bool) -> str:
    """Installing anew helps only where vLLM cannot even be imported."""
    if vllm.check_vllm(cuda)[0].state in (BROKEN, MISSING):
        return f"{vllm.install_command(cuda)}, or rollout.engine = local"
    return "see the reason in the table; fastflow plan estimates the memory of a run; or rollout.engine = local"


def tiny_policy(device: str):
    """A randomly initialised Llama with one layer and one head, in bfloat16 on a GPU."""
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
        return PackedModel(LlamaForCausalLM(config).to(device, dtype))


def largest_difference(sampler, policy) -> float:
    """In nats, over all tokens of a few responses."""
    import numpy as np

    from fastflow.data.trajectory import Prompt, flatten
    from fastflow.models.scoring import rescore
    from fastflow.rollout.sampler import Request, SamplingParams

    request = Request(Prompt(np.array([1, 2, 3], dtype=np.int64)), tuple(range(RESPONSES)))
    groups = sampler.sample([request], SamplingParams(max_response_tokens=16))
    pairs = zip(flatten(groups), flatten(rescore(policy, groups, 10**6)), strict=True)
    return max(float(abs(theirs.behaviour_logprobs - ours.behaviour_logprobs).max()) for theirs, ours in pairs)
