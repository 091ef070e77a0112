"""`fastflow doctor --vllm`: a real engine over a model of nine thousand parameters, from start to samples."""

from __future__ import annotations

import time

from fastflow.doctor.check import BROKEN, OK, Check
from fastflow.doctor.vllm import install_command
from fastflow.errors import FastflowError

NAME = "vllm, started"
CONTEXT, SEQUENCES, RESPONSES = 48, 8, 8
WIDTH = 32  # of the only head: vLLM on a CPU takes no narrower ones
TOLERANCE = 1e-3  # nats, of one token in float32


def check_engine(cuda: bool) -> Check:
    """Loads the weights, samples, and compares the log-probs that vLLM reports with the trainer's."""
    from fastflow.rollout.vllm.sampler import VllmSampler

    policy, start = tiny_policy("cuda" if cuda else "cpu"), time.perf_counter()
    try:
        sampler = VllmSampler(policy, eos_ids=[0], context=CONTEXT, max_sequences=SEQUENCES)
        ready = time.perf_counter() - start
        try:
            difference = largest_difference(sampler, policy)
        finally:
            sampler.close()
    except FastflowError as error:
        remedy = f"{install_command(cuda)}, or rollout.engine = local"
        return Check(NAME, BROKEN, " ".join(str(error).split())[:600], remedy)
    found = f"ready in {ready:.0f} s; the log-probs of its samples are within {difference:.0e} nats of the trainer's"
    if not difference <= TOLERANCE:
        found = f"ready in {ready:.0f} s, but its log-probs are {difference:.2g} nats away from the trainer's"
        return Check(NAME, BROKEN, found, "rollout.engine = local, and report what this table says")
    return Check(NAME, OK, found)


def tiny_policy(device: str):
    """A randomly initialised Llama with one layer and one head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fastflow.models import PackedModel

    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PackedModel(LlamaForCausalLM(config).to(device))


def largest_difference(sampler, policy) -> float:
    """In nats, over all tokens of a few responses."""
    import numpy as np

    from fastflow.rollout.sampler import Request, SamplingParams
    from fastflow.scoring import rescore
    from fastflow.trajectory import Prompt, flatten

    request = Request(Prompt(np.array([1, 2, 3], dtype=np.int64)), tuple(range(RESPONSES)))
    groups = sampler.sample([request], SamplingParams(max_response_tokens=16))
    pairs = zip(flatten(groups), flatten(rescore(policy, groups, 10**6)), strict=True)
    return max(float(abs(theirs.behaviour_logprobs - ours.behaviour_logprobs).max()) for theirs, ours in pairs)
