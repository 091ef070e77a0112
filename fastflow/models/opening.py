"""Opens policy and frozen base: their weights, on their device, with their adapters and their kind of layers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.config.setting import suggest
from fastflow.errors import FastflowError, need
from fastflow.models.layers import attention
from fastflow.models.layers.decoder_layers import arrange_layers, check_compiler
from fastflow.models.layers.dropout import switch_off_dropout
from fastflow.models.layers.experts import check_device, has_experts
from fastflow.models.layers.fused_layers import LIGER, choose_layers, fits, fuse_layers
from fastflow.models.layers.linear_attention import has_fused_rule, linear_attentions
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel
from fastflow.models.vocabulary import check_same_tokens, check_same_vocabulary
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from fastflow.models.weights.hollow import Unread, open_causal_lm
from fastflow.models.weights.loading import load_causal_lm, read_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

OF_MIXTURES = {  # experts, those of all tokens with their gate, routers
    "gate", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "experts", "shared_expert", "shared_expert_gate",
}  # fmt: skip


def load_models(
    settings: ModelConfig, lora: LoraConfig, *, to_be_cut: bool = False
) -> tuple[PackedModel, PackedModel | AdaptersOff]:
    """Load policy and frozen base. Raises FastflowError for unreadable models and for vocabularies that differ.

    to_be_cut: leave the weights in their files where that works, until cut/sharding.py cuts the models over ranks.
    """
    for path in filter(None, (settings.path, settings.base)):  # before weights load, which takes time
        read_config(path, trust_remote_code=settings.trust_remote_code)
    check_same_tokens(settings)
    policy = load_policy(settings, lora, to_be_cut=to_be_cut)
    if lora.rank:
        return policy, AdaptersOff(policy)
    base_model, unread = _open(settings.base or settings.path, settings, policy.device, to_be_cut)
    if settings.autocast and unread is None:
        hold_in_bfloat16(base_model)
    move(base_model, policy.device)
    layers = prepare_layers(base_model, settings)
    base = FrozenModel(base_model, layers=layers, **_arithmetic(settings, policy.kernel))
    base.unread = unread
    check_same_vocabulary(policy, base, settings)
    return policy, base


def load_policy(settings: ModelConfig, lora: LoraConfig, *, to_be_cut: bool = False) -> PackedModel:
    """Load the policy alone. Raises FastflowError for an unreadable model. to_be_cut: see load_models."""
    device = resolve_device(settings.device)
    dtype = torch.bfloat16 if settings.autocast else getattr(torch, settings.dtype)
    kernel = attention.choose_kernel(settings.attention, device, dtype)
    model, unread = _open(settings.path, settings, device, to_be_cut)
    if rates := switch_off_dropout(model):
        named = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        logger.info("the model's own dropout is off (%s), since the model that samples has none", named)
    move(model, device)
    layers = prepare_layers(model, settings, checkpoint_share=settings.checkpoint_share)
    adapted = with_adapters(model, lora) if lora.rank else model
    policy = PackedModel(adapted, layers=layers, **_arithmetic(settings, kernel))
    policy.unread = unread
    return policy


def _arithmetic(settings: ModelConfig, kernel: str) -> dict[str, Any]:
    """Return what policy and base have in common of PackedModel's settings."""
    return {"kernel": kernel, "autocast": settings.autocast, "residual_stream": settings.residual_stream}


def _open(
    path: str, settings: ModelConfig, device: torch.device, to_be_cut: bool
) -> tuple[PreTrainedModel, Unread | None]:
    return open_causal_lm(path, settings, device) if to_be_cut else (load_causal_lm(path, settings), None)


def move(model: torch.nn.Module, device: torch.device) -> None:
    """Bring all weights of a model to a device, in place."""
    model.to(device)


def prepare_layers(model: PreTrainedModel, settings: ModelConfig, *, checkpoint_share: float = 0.0) -> str:
    """Fuse, compile and checkpoint the decoder layers of a model on its device.

    Returns the kind of layers that it has now: "liger", "compiled" or "plain". Raises FastflowError where
    model.fused_layers or model.compile does not work here.
    """
    check_device(model.config, model.device)
    compiled = settings.compile == "layers"
    layers = choose_layers(settings.fused_layers, model.device, suitable=fits(model.config), compiled=compiled)
    if layers == LIGER:
        fuse_layers(model)
    if compiled:
        check_compiler(model.device)
    arrange_layers(model, compiled=compiled, checkpoint_share=checkpoint_share)
    if model.device.type == "cuda" and linear_attentions(model) and not has_fused_rule():
        logger.info(
            'linear attention runs by PyTorch\'s operations; pip install "fastflow[linear-attention]" for kernels'
        )
    return "compiled" if compiled else layers


def resolve_device(name: str) -> torch.device:
    """Return the torch device for `model.device`; "auto" is CUDA where there is a device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = parse_device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FastflowError(f"model.device = {name}, but torch sees no CUDA device; use --model.device cpu")
    return device


def parse_device(name: str) -> torch.device:
    """Return the torch device of a name, whether this machine has it or not."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not supported")
    except RuntimeError as error:
        raise FastflowError(f"model.device = {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    return device


def with_adapters(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Add LoRA adapters to a model. Raises FastflowError for targets that do not fit it, as experts and routers."""
    peft = need("peft", extra="lora", purpose="lora.rank above 0")
    targets = _targets(model, lora)
    if ends := {"lm_head", "embed_tokens"}.intersection(targets):
        raise FastflowError(
            f"lora.targets names {', '.join(sorted(ends))}, but the fused loss reads the head's weight; leave them out"
        )
    _check_targets(model, targets)
    adapters = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        return peft.get_peft_model(model, adapters)
    except ValueError as error:
        raise FastflowError(f"lora.targets = {lora.targets!r} does not fit this model: {error}") from error


def _targets(model: PreTrainedModel, lora: LoraConfig) -> str | list[str]:
    """Return the modules that get adapters as peft takes them. It would adapt experts and routers under the names of
    linear layers, which neither a merge nor vLLM takes.
    """
    named = [name.strip() for name in lora.targets.split(",")]
    if not has_experts(model.config):
        return lora.targets if named == ["all-linear"] else named
    if named == ["all-linear"]:
        linear = {name.rpartition(".")[2] for name, one in model.named_modules() if type(one) is torch.nn.Linear}
        return sorted(linear - {"lm_head", *OF_MIXTURES})
    if experts := OF_MIXTURES.intersection(name.rpartition(".")[2] for name in named):
        raise FastflowError(
            f"lora.targets names {', '.join(sorted(experts))}, but the MLPs and routers of a mixture get no adapters; "
            "leave them out (all-linear is the attention here), or train all weights with lora.rank = 0"
        )
    return named


def _check_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Raise FastflowError for a name that no module has. peft refuses names only where none of them fits."""
    if isinstance(targets, str):
        return
    modules = {f".{name}": module for name, module in model.named_modules()}
    for target in targets:
        if not target or not any(name.endswith(f".{target}") for name in modules):
            linear = {name.rpartition(".")[2] for name, one in modules.items() if isinstance(one, torch.nn.Linear)}
            others = {"lm_head", *(OF_MIXTURES if has_experts(model.config) else ())}
            raise FastflowError(
                f"lora.targets names {target!r}, which no module of this model is called: "
                f"{suggest(target, linear - others)}"
            )
