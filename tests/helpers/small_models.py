"""Small models and random trajectories that the tests make themselves."""

from __future__ import annotations

import numpy as np
import torch

from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.demo.small_model import make_tokenizer

FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "olmo2", "olmo3", "smollm3", "phi3", "granite", "gemma3_text", "qwen3_5_text",
    "qwen3_moe", "qwen3_5_moe_text",
)  # fmt: skip
CARRYING = ("qwen3_5_text", "qwen3_5_moe_text")  # with layers of linear attention, which carry a state
MIXTURES = ("qwen3_moe", "qwen3_5_moe_text")
OF_STATES = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "rms_norm_eps": 1e-2,  # a norm follows what a state of few numbers puts out, which may be near zero
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0],
    },
}  # fmt: skip
OF_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OWN_SETTINGS = {  # what makes a family differ from the others, on two layers
    "mistral": {"sliding_window": 8},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "granite": {
        "embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 3.0,
    },
    "gemma3_text": {
        "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4,
        "initializer_range": 0.1,  # its embedding is scaled, and its norms make layers as large at every range
    },
    "qwen3_5_text": OF_STATES,
    "qwen3_moe": {**OF_EXPERTS, "norm_topk_prob": True},
    "qwen3_5_moe_text": {**OF_STATES, **OF_EXPERTS, "shared_expert_intermediate_size": 24},
}  # fmt: skip
WITHOUT_CHOICE = {  # a token that chooses otherwise in bfloat16 moves more than rounding does
    "qwen3_moe": {"num_experts_per_tok": 4},
    "qwen3_5_moe_text": {"num_experts_per_tok": 4},
}
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
        **OWN_SETTINGS.get(family, {}),
        **changes,
    }
    if "layer_types" in settings:
        kinds = settings["layer_types"]
        settings["layer_types"] = [kinds[layer % len(kinds)] for layer in range(settings["num_hidden_layers"])]
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):  # a state that lasts: by default half of it is gone after a token or two
            torch.nn.init.uniform_(parameter, -4, -1)
    return model


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


def hidden_and_gradients(policy, batches) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Hidden states of each batch, and the gradients of a weighted sum of them all."""
    policy.model.zero_grad()
    torch.manual_seed(1)  # dropout, where there is any
    outputs = []
    for batch in batches:
        hidden = policy.hidden_states(batch)
        weights = torch.linspace(-1, 1, hidden.numel(), device=hidden.device).reshape(hidden.shape)
        (hidden * weights).sum().backward()
        outputs.append(hidden.detach())
    return outputs, [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]


def assert_near(found, expected, exact=None, *, tolerance: float = 1e-5) -> None:
    """Two results of `hidden_and_gradients`: each tensor within the tolerance of its norm, and of twice the distance
    that rounding puts between `expected` and `exact`.

    A gradient that is nearly zero, as that of a key's bias is, counts beside all gradients.
    """
    exact = expected if exact is None else exact
    noise = 1e-6 * torch.stack([gradient.float().norm() for gradient in exact[1]]).norm()
    for kind in (0, 1):
        for one, other, reference in zip(found[kind], expected[kind], exact[kind], strict=True):
            one, other, reference = one.float(), other.float(), reference.float()
            assert (one - other).norm() <= noise + tolerance * reference.norm() + 2 * (other - reference).norm()
