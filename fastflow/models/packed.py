"""Policy and frozen base: loading, hidden states of a PackedBatch, the language-model head, LoRA."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import PackedBatch
from fastflow.errors import FastflowError, need
from fastflow.models import attention, rope
from fastflow.models.decoder_layers import arrange_layers, check_compiler
from fastflow.models.files import check_files
from fastflow.models.frozen_weights import hold_in_bfloat16
from fastflow.models.fused_layers import LIGER, PLAIN, choose_layers, fits, fuse_layers
from fastflow.models.loading import load_causal_lm, loading, read_config
from fastflow.models.vocabulary import check_same_tokens
from fastflow_kernels.sampling import head_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class PackedModel:
    """A causal LM read over PackedBatches: hidden states without the head, and the head apart.

    model: a transformers causal LM, or a peft model around one. kernel: which packed attention serves it.
    autocast: run the transformer body in bfloat16. layers: whose layers it has, for the announcement. version:
    optimiser updates that the weights have seen.
    """

    def __init__(self, model: PreTrainedModel, *, kernel: str = "sdpa", autocast: bool = False, layers: str = PLAIN):
        attention.register()
        self.model = model
        self.kernel = kernel
        self.autocast = autocast
        self.layers = layers
        self.version = 0
        self.causal_lm.config._attn_implementation = attention.NAME

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, without the peft wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def device(self) -> torch.device:
        return self.causal_lm.device

    @property
    def vocab_size(self) -> int:
        """Rows of the head, V."""
        return self.head()[0].shape[0]

    @property
    def hidden_size(self) -> int:
        return self.head()[0].shape[1]

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        """Last-layer hidden states (T, D) of a PackedBatch, after the final norm."""
        rope.check_pass(self.causal_lm, max(batch.lengths))
        with self._autocast():
            output = self.causal_lm.get_decoder()(
                input_ids=batch.input_ids.unsqueeze(0),
                position_ids=batch.position_ids.unsqueeze(0),
                use_cache=False,
                cu_seq_lens_q=batch.cu_seqlens,
                sequence_lengths=attention.SequenceLengths(batch.lengths),
                packed_kernel=self.kernel,
            )
        return output.last_hidden_state[0]

    def head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (V, D) and bias (V,) or None of the language-model head, tied or not."""
        head = self.causal_lm.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def head_inputs(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Hidden rows (N, D), head weight and bias as the fused ops take them.

        Under autocast the rows are bfloat16 and the head stays float32: the ops multiply in the narrower of the
        two, and the head's gradient is not rounded.
        """
        weight, bias = self.head()
        return hidden.to(torch.bfloat16 if self.autocast else weight.dtype), weight, bias

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of a few hidden rows, in float32, multiplied as the fused ops do."""
        return head_logits(*self.head_inputs(hidden))

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that training changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @contextlib.contextmanager
    def decoding(self) -> Iterator[PreTrainedModel]:
        """The transformers model ready for cached, padded decoding: SDPA, no dropout. Restored on exit."""
        config, was_training = self.causal_lm.config, self.model.training
        config._attn_implementation = "sdpa"
        self.model.eval()
        try:
            with self._autocast():
                yield self.causal_lm
        finally:
            config._attn_implementation = attention.NAME
            self.model.train(was_training)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


class FrozenModel(PackedModel):
    """A separate copy of the weights that never changes."""

    def __init__(self, model: PreTrainedModel, **options):
        super().__init__(model, **options)
        model.requires_grad_(False).eval()

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        with torch.no_grad():
            return super().hidden_states(batch)


class AdaptersOff:
    """The base under LoRA: the policy itself with its adapters switched off, at no extra memory."""

    def __init__(self, policy: PackedModel):
        self.policy = policy
        self.vocab_size = policy.vocab_size

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        was_training = self.policy.model.training
        self.policy.model.eval()
        try:
            with torch.no_grad(), self.policy.model.disable_adapter():
                return self.policy.hidden_states(batch)
        finally:
            self.policy.model.train(was_training)

    def head_inputs(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.policy.head_inputs(hidden)


def load_tokenizer(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.path`. Raises FastflowError when it cannot be read or has no end-of-sequence token."""
    from transformers import AutoTokenizer

    check_files(settings.path)
    with loading(settings.path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise FastflowError(f"the tokenizer in {settings.path} has no eos_token; set one in its tokenizer_config.json")
    return tokenizer


def load_models(settings: ModelConfig, lora: LoraConfig) -> tuple[PackedModel, PackedModel | AdaptersOff]:
    """Policy and frozen base. Raises FastflowError for unreadable models and for vocabularies that differ."""
    for path in filter(None, (settings.path, settings.base)):  # before any weights take their time
        read_config(path, trust_remote_code=settings.trust_remote_code)
    check_same_tokens(settings)
    device = resolve_device(settings.device)
    options = {
        "kernel": attention.choose_kernel(
            settings.attention, device, torch.bfloat16 if settings.autocast else getattr(torch, settings.dtype)
        ),
        "autocast": settings.autocast,
    }
    model = load_causal_lm(settings.path, settings).to(device)
    options["layers"] = prepare_layers(model, settings, checkpoint_share=settings.checkpoint_share)
    if lora.rank:
        policy = PackedModel(with_adapters(model, lora), **options)
        return policy, AdaptersOff(policy)
    policy = PackedModel(model, **options)
    base_model = load_causal_lm(settings.base or settings.path, settings)
    if settings.autocast:
        hold_in_bfloat16(base_model)
    options["layers"] = prepare_layers(base_model.to(device), settings)
    base = FrozenModel(base_model, **options)
    check_same_vocabulary(policy, base, settings)
    return policy, base


def prepare_layers(model: PreTrainedModel, settings: ModelConfig, *, checkpoint_share: float = 0.0) -> str:
    """Fuse, compile and checkpoint the decoder layers of a model on its device. Returns which layers it has now:
    "liger", "compiled" or "plain".

    Raises FastflowError where model.fused_layers or model.compile cannot be had.
    """
    compiled = settings.compile == "layers"
    layers = choose_layers(settings.fused_layers, model.device, suitable=fits(model.config), compiled=compiled)
    if layers == LIGER:
        fuse_layers(model)
    if compiled:
        check_compiler(model.device)
    arrange_layers(model, compiled=compiled, checkpoint_share=checkpoint_share)
    return "compiled" if compiled else layers


def check_same_vocabulary(policy: PackedModel, base: PackedModel, settings: ModelConfig) -> None:
    if policy.vocab_size != base.vocab_size:
        raise FastflowError(
            f"policy and base have different vocabularies: {settings.path} has {policy.vocab_size} rows in its head, "
            f"{settings.base} has {base.vocab_size}; choose a model.base of the same family"
        )


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, policy: PackedModel, settings: ModelConfig) -> None:
    """Refuse a tokenizer that can produce ids without a row in the head."""
    if len(tokenizer) > policy.vocab_size:
        raise FastflowError(
            f"the tokenizer in {settings.path} has {len(tokenizer)} tokens, but the model's head only "
            f"{policy.vocab_size} rows; the two do not belong together, so check model.path"
        )


def end_ids(policy: PackedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the tokenizer's and the model's own."""
    configured = policy.causal_lm.generation_config.eos_token_id if policy.causal_lm.generation_config else None
    configured = [configured] if isinstance(configured, int) else list(configured or [])
    return sorted({tokenizer.eos_token_id, *configured})


def resolve_device(name: str) -> torch.device:
    """The torch device for `model.device`; "auto" is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not supported")
    except RuntimeError as error:
        raise FastflowError(f"model.device = {name!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FastflowError(f"model.device = {name}, but torch sees no CUDA device; use --model.device cpu")
    return device


def with_adapters(model: PreTrainedModel, lora: LoraConfig) -> torch.nn.Module:
    peft = need("peft", extra="lora", purpose="lora.rank above 0")
    targets = lora.targets if lora.targets == "all-linear" else [name.strip() for name in lora.targets.split(",")]
    if ends := {"lm_head", "embed_tokens"}.intersection(targets):
        raise FastflowError(
            f"lora.targets names {', '.join(sorted(ends))}, but the fused loss reads the head's weight; leave it out"
        )
    adapters = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        return peft.get_peft_model(model, adapters)
    except ValueError as error:
        raise FastflowError(f"lora.targets = {lora.targets!r} does not fit this model: {error}") from error
