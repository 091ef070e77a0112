"""Read the sizes of a model from its config.json: count its parts on the meta device, without weights."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.errors import FastflowError
from fastflow.models.layers import fused_layers
from fastflow.models.layers.experts import expert_weights, router_weights
from fastflow.models.layers.linear_attention import linear_attentions
from fastflow.models.layers.rope import context_of
from fastflow.models.opening import with_adapters
from fastflow.models.packed import logits_divisor
from fastflow.models.weights.loading import loading, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Adapters:
    """Counts of LoRA.

    parameters, tensors: of the adapters. adapted: parameters of the weights under adapters. largest: of the largest of
    these weights. plain: of the model's other weights.
    """

    parameters: int
    tensors: int
    adapted: int
    largest: int
    plain: int


@dataclass(frozen=True)
class ModelSizes:
    """Counts and widths of one causal LM; tied weights count once.

    path, trust_remote_code: where it is, and whether its own code may run. parameters, tensors: of the whole model.
    body_linear: parameters of the linear weights in its layers, of all experts and of the routers. matrices: those with
    embedding and head, without the routers. experts, chosen: of a layer in a mixture, and those that each token runs;
    0 and 1 in a dense model. expert_weights: parameters of all experts. intermediate: numbers between the two products
    of a token's MLP, or of its chosen and shared experts. largest: numbers of the largest tensor.
    vocab_size x hidden: the head. query, key: heads x head_dim of queries, and of keys or values. attending: layers
    that have these. state, convolved: numbers that the others, of linear attention, keep of one sequence, however long:
    in float32, and in the type of their products. context: tokens for which the model has positions, where its config
    tells. bfloat16: whether its checkpoint is. fusable: whether Liger has its layers. divides_logits: and so makes a
    copy of what its head reads.
    """

    path: str = field(compare=False)
    trust_remote_code: bool = field(compare=False)
    layers: int
    attending: int
    state: int
    convolved: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    parameters: int
    tensors: int
    body_linear: int
    matrices: int
    experts: int
    chosen: int
    expert_weights: int
    largest: int
    tied: bool
    context: int | None
    bfloat16: bool
    fusable: bool
    divides_logits: bool

    @property
    def active_linear(self) -> int:
        """Parameters of the linear weights in the layers that one token meets."""
        idle = self.expert_weights // self.experts * (self.experts - self.chosen) if self.experts else 0
        return self.body_linear - idle

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.key_value_heads * self.head_dim


def read_sizes(path: str, settings: ModelConfig) -> ModelSizes:
    """Read the sizes of the model in a local directory or at a hub id. Raises FastflowError for a bad config.json."""
    return _measure(path, settings.trust_remote_code)


def count_adapters(path: str, settings: ModelConfig, lora: LoraConfig) -> Adapters:
    """Count what lora.rank and lora.targets add. Raises FastflowError without peft, and for targets that do not fit."""
    named = list(_adapted(path, settings.trust_remote_code, lora).named_parameters())
    trained = [entry.numel() for _, entry in named if entry.requires_grad]
    adapted = [entry.numel() for name, entry in named if name.endswith(".base_layer.weight")]
    own = sum(entry.numel() for name, entry in named if ".lora_" in name)
    plain = sum(entry.numel() for _, entry in named) - own - sum(adapted)
    return Adapters(sum(trained), len(trained), sum(adapted), max(adapted, default=0), plain)


@functools.cache
def _adapted(path: str, trust_remote_code: bool, lora: LoraConfig) -> torch.nn.Module:
    import warnings

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # peft warns of tied weights, which adapters do not change
        return with_adapters(_build(path, trust_remote_code), lora)


@functools.cache
def _empty_model(path: str, trust_remote_code: bool) -> PreTrainedModel:
    return _build(path, trust_remote_code)


def _build(path: str, trust_remote_code: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config = read_config(path, trust_remote_code=trust_remote_code)
    with loading(path, "model"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return model


def _measure(path: str, trust_remote_code: bool) -> ModelSizes:
    model = _empty_model(path, trust_remote_code)
    config, parameters = model.config, list(model.parameters())
    head = model.get_output_embeddings().get_parameter("weight")
    embedding = model.get_input_embeddings().get_parameter("weight")
    linear = [layer.weight for layer in model.get_decoder().modules() if isinstance(layer, torch.nn.Linear)]
    convolutions = [layer.weight for layer in model.get_decoder().modules() if isinstance(layer, torch.nn.Conv1d)]
    experts = [weight for module in model.modules() for weight in expert_weights(module)]
    routers = [weight for module in model.modules() for weight in router_weights(module)]
    multiplied = sum(weight.numel() for weight in (*linear, *experts))
    outer = {id(weight): weight.numel() for weight in (head, embedding)}
    carrying = linear_attentions(model)
    try:
        chosen = config.num_experts_per_tok if experts else 1
        heads = config.num_attention_heads
        return ModelSizes(
            path=path,
            trust_remote_code=trust_remote_code,
            layers=config.num_hidden_layers,
            attending=config.num_hidden_layers - len(carrying),
            state=len(carrying) * _state(config) if carrying else 0,
            convolved=sum(weight.shape[0] * weight.shape[-1] for weight in convolutions),
            hidden=config.hidden_size,
            intermediate=_of_experts(config, chosen) if experts else config.intermediate_size,
            heads=heads,
            key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=len(head),
            parameters=sum(entry.numel() for entry in parameters),
            tensors=len(parameters),
            body_linear=multiplied + sum(weight.numel() for weight in routers),
            matrices=multiplied + sum(outer.values()),
            experts=len(experts[0]) if experts else 0,
            chosen=chosen,
            expert_weights=sum(weight.numel() for weight in experts),
            largest=max(entry.numel() for entry in parameters),
            tied=head is embedding,
            context=context_of(config),
            bfloat16=config.dtype == torch.bfloat16,
            fusable=fused_layers.fits(config),
            divides_logits=logits_divisor(config) != 1,
        )
    except AttributeError as error:
        raise FastflowError(f"the config.json of {path} does not tell the model's sizes: {error}") from error


def _of_experts(config: PretrainedConfig, chosen: int) -> int:
    """Count the numbers between the two products of the experts that a token runs, with the one that all tokens do."""
    return int(chosen * config.moe_intermediate_size + getattr(config, "shared_expert_intermediate_size", 0))


def _state(config: PretrainedConfig) -> int:
    """Count the numbers that a layer of linear attention carries from token to token."""
    return int(config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim)
