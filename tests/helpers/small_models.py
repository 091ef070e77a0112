"""Small models and random trajectories that the tests make themselves."""

from __future__ import annotations

import numpy as np
import torch

from fastflow.demo.small_model import make_tokenizer
from fastflow.trajectory import Group, Prompt, Trajectory

FAMILIES = ("llama", "qwen2", "qwen3")
VOCABULARY = 40


def make_causal_lm(family: str = "llama", *, tied: bool = True, vocab_size: int = VOCABULARY, seed: int = 0, **changes):
    """A randomly initialised two-layer model of one family, grouped-query attention, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.3,
        **changes,
    }
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def make_groups(rng: np.random.Generator, prompts: int = 3, responses: int = 4, *, vocab_size: int = VOCABULARY):
    """Random groups with lengths from 1 token up, the shortest included."""
    groups = []
    for number in range(prompts):
        prompt = Prompt(rng.integers(1, vocab_size, rng.integers(1, 9)), f"prompt {number}")
        lengths = [1, *rng.integers(1, 20, responses - 1)]
        trajectories = tuple(
            Trajectory(
                rng.integers(1, vocab_size, length),
                rng.normal(-2, 0.5, length).astype(np.float32),
                "stop",
                seed=int(rng.integers(1000)),
            )
            for length in lengths
        )
        groups.append(Group(prompt, trajectories))
    return groups


def save_model(
    directory,
    *,
    pieces="abcdefghijklmnopqrstuvwxyz0123456789",
    vocab_size: int = VOCABULARY,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes,
):
    tokenizer = make_tokenizer(list(pieces))
    make_causal_lm(vocab_size=vocab_size, seed=seed, **changes).to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
