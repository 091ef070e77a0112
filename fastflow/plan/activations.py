"""Count the bytes that autograd keeps for the backward pass, per packed token: run the model's own code without memory.

One layer of each kind and then two are built from config.json with tensors that have a shape and a type and no numbers
(FakeTensor), and run as training runs them: adapters, autocast, the residual stream. What autograd saves is counted for
two lengths, so that what no token takes, as autocast's copies of the weights and the 1 + weight of Gemma's norms, drops
out. So each family counts as its own code computes. On a CPU the tests find exactly these bytes among the tensors that
real passes save. What no CPU runs has a stand-in (stand_ins.py) that saves what the kernel does, by its signature and
not by a measurement:

    attention     queries, keys, values, output and 4 B a head; what sdpa gathers before and after; keys and values as
                  wide as the queries (varlen of torch below 2.13, and sdpa in float32 on CUDA)
    linear        what the rule of flash-linear-attention saves, where it is installed
    Liger         a norm's input unchanged and one number a token (of query norms: a head); of the MLP gate and up alone
    dropout       a mask of one byte a number
    experts       the rows of the tokens that go to them, which are as many for every routing

What torch.compile keeps is not counted: it is at most what the plain layers keep. Neither are the masks of a sliding
window, which sdpa makes for blocks of queries.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastflow.config.model_sections import ResidualStream
from fastflow.config.schema import LoraConfig
from fastflow.data.packing import PackedBatch, pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.errors import FastflowError, message_of
from fastflow.models.layers import rope
from fastflow.models.layers.dropout import switch_off_dropout
from fastflow.models.layers.experts import has_experts
from fastflow.models.layers.similar_lengths import in_buckets
from fastflow.models.opening import with_adapters
from fastflow.models.packed import PackedModel
from fastflow.models.weights.hollow import exchange
from fastflow.models.weights.loading import read_config
from fastflow.plan.sizes import ModelSizes
from fastflow.plan.stand_ins import (
    ATTENTION,
    WIDE_SDPA,
    register_attention,
    rule_of_a_kernel,
    take_experts,
    take_layers_of_liger,
    take_narrow_masks,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLOAT = 4
LENGTHS = (64, 128)  # tokens of the two passes that are compared: whole chunks of linear attention


@dataclass(frozen=True)
class Numbers:
    """The types and layers of a forward pass. kernel: sdpa, varlen or flash_attn, or one of the stand-ins' names.

    narrow_masks: dropout's take one byte, as on CUDA. bfloat16_stream: model.residual_stream is bfloat16.
    bfloat16_norms: ranks round the weights of the layers' norms. fused_rule: flash-linear-attention serves.
    """

    bfloat16: bool
    autocast: bool
    kernel: str
    fused_layers: bool = False
    lora_rank: int = 0
    lora_dropout: bool = False
    narrow_masks: bool = False
    lora_targets: str = "all-linear"
    bfloat16_stream: bool = False
    bfloat16_norms: bool = False
    fused_rule: bool = False

    @property
    def product(self) -> int:
        return 2 if self.bfloat16 or self.autocast else FLOAT

    @property
    def residual(self) -> int:
        return 2 if self.bfloat16 or self.bfloat16_stream else FLOAT


@dataclass(frozen=True)
class Saved:
    """Bytes per token: of a layer, on average over its kinds; outside of the layers. output: bytes of a number that the
    last norm puts out.
    """

    layer: int
    outer: int
    output: int


def count_saved(model: ModelSizes, numbers: Numbers) -> Saved:
    """Count what autograd saves. Raises FastflowError for a model whose own code does not run without memory."""
    return _saved(model.path, model.trust_remote_code, numbers)


def checkpoint_bytes(model: ModelSizes, numbers: Numbers) -> int:
    """Return the saved bytes of one layer per token under gradient checkpointing: its input."""
    return numbers.residual * model.hidden


def in_flight_bytes(model: ModelSizes, numbers: Numbers) -> int:
    """Return the bytes of gradients that exist at once in a layer's backward: three of the MLP, two of the residual,
    and two of the rows that a token sends to its experts.
    """
    rows = 2 * numbers.product * model.hidden * model.chosen if model.experts else 0
    return 3 * numbers.product * model.intermediate + 2 * FLOAT * model.hidden + rows


@functools.cache
def _saved(path: str, trust_remote_code: bool, numbers: Numbers) -> Saved:
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = read_config(path, trust_remote_code=trust_remote_code)
    layers = getattr(config, "layer_types", None) or ["the only kind"] * config.num_hidden_layers
    kinds = list(dict.fromkeys(layers))
    try:
        one_each = _build(config, kinds, trust_remote_code, numbers)
        one_more = {kind: _build(config, [*kinds, kind], trust_remote_code, numbers) for kind in kinds}
        _plan_batches()
        rule = rule_of_a_kernel(one_each.causal_lm) if numbers.fused_rule else contextlib.nullcontext()
        with rule, FakeTensorMode(allow_non_fake_inputs=True):
            for model in (one_each, *one_more.values()):
                _give_shapes(model.model)
            of_one_each, output = _bytes_per_token(one_each), _output_bytes(one_each)
            of_kinds = {kind: _bytes_per_token(model) - of_one_each for kind, model in one_more.items()}
    except FastflowError:
        raise
    except Exception as error:  # a model's own code may raise anything
        reason = message_of(error, typed=True)
        raise FastflowError(
            f"the activations of {path} cannot be counted, since its code does not run without memory ({reason}); "
            "train it for one step to see what it takes"
        ) from error
    indices = 2 * 8 if numbers.kernel in ("sdpa", WIDE_SDPA) else 0  # by which sdpa gathers, shared by all layers
    of_layers = sum(of_kinds[kind] for kind in layers)
    return Saved(
        layer=-(-of_layers // len(layers)), outer=of_one_each - sum(of_kinds.values()) + indices, output=output
    )


def _build(config: PretrainedConfig, kinds: list[str], trust_remote_code: bool, numbers: Numbers) -> PackedModel:
    """Build a model with a layer for each of these kinds, as a trainer does."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.num_hidden_layers = len(kinds)
    if getattr(config, "layer_types", None):
        config.layer_types = kinds
    if has_experts(config):  # a layer without counts as one with them
        config.mlp_only_layers, config.decoder_sparse_step = [], 1
    dtype = torch.bfloat16 if numbers.bfloat16 else torch.float32
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    if len(model.get_decoder().layers) != len(kinds):
        raise ValueError("its num_hidden_layers does not say how many layers it has")
    model.get_input_embeddings().register_forward_hook(lambda *given: given[-1].requires_grad_())
    rope.hold_frequencies(model)
    switch_off_dropout(model)
    if numbers.bfloat16_norms:
        model.get_decoder().layers.bfloat16()
    if numbers.fused_layers:
        take_layers_of_liger(model)
    if numbers.lora_rank:
        lora = LoraConfig(rank=numbers.lora_rank, dropout=0.1 * numbers.lora_dropout, targets=numbers.lora_targets)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of tied weights, which adapters do not change
            model = with_adapters(model, lora)
    if numbers.narrow_masks:
        take_narrow_masks(model)
    stream: ResidualStream = "bfloat16" if numbers.bfloat16_stream else "float32"
    policy = PackedModel(model.train(), kernel=numbers.kernel, autocast=numbers.autocast, residual_stream=stream)
    register_attention()
    policy.causal_lm.config._attn_implementation = ATTENTION
    take_experts(policy.causal_lm.config)
    return policy


def _give_shapes(model: nn.Module) -> None:
    """Put tensors that say they are on a CPU into the place of those on the meta device, which autocast leaves out."""
    others = {
        one: nn.Parameter(torch.empty(one.shape, dtype=one.dtype), one.requires_grad) for one in model.parameters()
    }
    exchange(model, others)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _plan_batches() -> None:
    """Make the indices of the passes' batches, which are kept for later passes: tensors without memory must not be."""
    for tokens in (1, *LENGTHS):
        in_buckets((tokens,), torch.device("cpu"))


def _bytes_per_token(model: PackedModel) -> int:
    few, many = LENGTHS
    return (_saved_in_a_pass(model, many) - _saved_in_a_pass(model, few)) // (many - few)


def _saved_in_a_pass(model: PackedModel, tokens: int) -> int:
    """Count the bytes that autograd saves in one forward pass, parameters and buffers aside."""
    weights = {_memory(tensor) for tensor in (*model.model.parameters(), *model.model.buffers())}
    saved: dict[int, Tensor] = {}  # the tensors themselves, or their memory would be used again

    def keep(tensor: Tensor) -> Tensor:
        if _memory(tensor) not in weights:
            saved.setdefault(_memory(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden_states(_batch(tokens))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _output_bytes(model: PackedModel) -> int:
    return model.hidden_states(_batch(1)).element_size()


def _batch(tokens: int) -> PackedBatch:
    """One sequence without a response."""
    nothing = Trajectory(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), "length")
    return pack([Group(Prompt(np.zeros(tokens, dtype=np.int64)), (nothing,))], tokens)[0]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
