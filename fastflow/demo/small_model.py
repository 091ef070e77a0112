"""Makes the demo's base models: a tokenizer over a fixed list of pieces, a small transformer, its pretraining."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow_kernels import linear_logprob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

WIDTH, LAYERS = 96, 2
END, UNKNOWN = "<end>", "<unknown>"


def make_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer that cuts text into the given pieces, longest first, and joins them unchanged."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate([END, UNKNOWN, *pieces])}
    pattern = "|".join(re.escape(piece) for piece in sorted(pieces, key=len, reverse=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def make_model(vocab_size: int, *, seed: int) -> PackedModel:
    """Make a randomly initialised Llama of about a quarter of a million parameters, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=5 * WIDTH // 2,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 32,  # vLLM on a CPU takes no narrower heads
        num_key_value_heads=WIDTH // 32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.05,
    )
    return PackedModel(LlamaForCausalLM(config))


def pretrain(
    model: PackedModel,
    tokenizer: PreTrainedTokenizerFast,
    draw_example: Callable[[np.random.Generator], tuple[str, str]],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    on_step: Callable[[float], None],
) -> None:
    """Train by maximum likelihood on pairs of `draw_example`. Calls `on_step` with nats per response token."""
    rng = np.random.default_rng([seed, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        pairs = [draw_example(rng) for _ in range(batch_size)]
        (batch,) = pack(_as_groups(pairs, tokenizer), tokens_per_microbatch=10**9)
        hidden = model.hidden_states(batch)
        loss = -linear_logprob(*model.head_inputs(hidden[batch.rows])[:2], batch.targets).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(loss.item())


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any]) -> Prompt:
    """Tokenise a prompt of the demo."""
    return Prompt(np.array(tokenizer(text)["input_ids"], dtype=np.int64), text, record)


def _as_groups(pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[Group]:
    """Make each (prompt, response) pair a group of one trajectory, so that pretraining packs as training does."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    responses = tokenizer([response for _, response in pairs])["input_ids"]
    groups = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = np.array([*response, tokenizer.eos_token_id], dtype=np.int64)
        example = Trajectory(ids, np.zeros(len(ids), dtype=np.float32), "stop")
        groups.append(Group(Prompt(np.array(prompt, dtype=np.int64)), (example,)))
    return groups
