"""Sizes of released models, their arithmetic, and checkpoints of such sizes with random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model of the Qwen2 family.

    layers: how many the released model has; a measurement may take fewer.
    """

    name: str
    width: int  # D
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int  # V
    tied: bool
    layers: int

    @property
    def layer_parameters(self) -> int:
        """Entries of the matrices of one layer: attention's four and the three of its MLP."""
        kv_width = self.width // self.heads * self.kv_heads
        return 2 * self.width * (self.width + kv_width) + 3 * self.width * self.intermediate

    @property
    def head_parameters(self) -> int:
        return self.width * self.vocabulary

    def update_flops(self, layers: int, lengths: Sequence[int], response_tokens: int) -> int:
        """Arithmetic that one update cannot do without.

        A forward pass of the base, a forward and a backward pass of the policy, causal attention counted by half,
        the head on the rows of response tokens only. Nothing is recomputed, nothing padded.

        lengths: input tokens of each sequence.
        """
        attention = sum(2 * length * length * self.width for length in lengths)
        forward = layers * (2 * self.layer_parameters * sum(lengths) + attention)
        return 4 * forward + 8 * response_tokens * self.head_parameters


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("0.5B", 896, 4864, 14, 2, 151936, tied=True, layers=24),
        ModelShape("1.5B", 1536, 8960, 12, 2, 151936, tied=True, layers=28),
        ModelShape("7B", 3584, 18944, 28, 4, 152064, tied=False, layers=28),
    )
}


def write_checkpoint(shape: ModelShape, layers: int, folder: Path, device: str, seed: int = 0) -> None:
    """Random weights in bfloat16, as such models are released."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
