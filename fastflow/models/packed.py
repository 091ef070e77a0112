"""Loads policy and frozen base, and reads PackedBatches: hidden states, the language-model head, LoRA."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fastflow.config.model_sections import ResidualStream
from fastflow.config.schema import LoraConfig, ModelConfig
from fastflow.data.packing import PackedBatch
from fastflow.errors import FastflowError, need
from fastflow.models import attention, rope
from fastflow.models.decoder_layers import arrange_layers, check_compiler
from fastflow.models.files import check_files, check_tokenizer_files
from fastflow.models.frozen_weights import hold_in_bfloat16
from fastflow.models.fused_layers import LIGER, PLAIN, choose_layers, fits, fuse_layers
from fastflow.models.hollow import Unread, open_causal_lm
from fastflow.models.loading import load_causal_lm, loading, read_config
from fastflow.models.parallel import Root, run_inside
from fastflow.models.ranks import Ranks
from fastflow.models.residual_stream import BFLOAT16, in_bfloat16
from fastflow.models.vocabulary import check_same_tokens
from fastflow_kernels import FlowLoss, TokenStatistics, flow_loss, linear_logprob
from fastflow_kernels.sampling import head_logits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import TypeIs

    from fastflow.models.cut_head import CutHead

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
HeadInputs = tuple[Float[Tensor, "N D"], Float[Tensor, "V D"], Float[Tensor, " V"] | None]  # rows, weight, bias


@runtime_checkable
class HasVocabulary(Protocol):
    """A model, or a plan of one, with a head of V rows."""

    @property
    def vocab_size(self) -> int:
        """Rows of the head, V."""


class PackedModel:
    """A causal LM that reads PackedBatches: hidden states without the head, and the head apart.

    model: a transformers causal LM, or a peft model around one. kernel: its packed attention. autocast: run the
    transformer body in bfloat16. residual_stream: its type under autocast, see residual_stream.py. layers: the kind of
    its layers, for the announcement. version: optimiser updates that the weights have seen. ranks, root: those that it
    is cut over, and what holds its parts together (see sharding.py). unread: where its weights are, until it is cut;
    None where it has them. cut_head: the head, where it is one of these parts for good.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        kernel: str = "sdpa",
        autocast: bool = False,
        residual_stream: ResidualStream = "float32",
        layers: str = PLAIN,
    ):
        attention.register()
        self.model = model
        self.kernel = kernel
        self.autocast = autocast
        self.residual_stream = residual_stream
        self.layers = layers
        self.version = 0
        self.ranks = Ranks()
        self.root: Root | None = None
        self.unread: Unread | None = None
        self.cut_head: CutHead | None = None
        self.causal_lm.config._attn_implementation = attention.NAME

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model without the peft wrapper."""
        return cast("PreTrainedModel", self.model.get_base_model()) if has_adapters(self.model) else self.model

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

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function that runs the model and reads its head. Under several ranks it is a collective, and tensors
        that carry gradient are returned by themselves or in a tuple.
        """
        return function() if self.root is None else run_inside(self.root, function)

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "T D"]:
        """Compute the last layer's hidden states of a PackedBatch, after the final norm."""
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

    def head(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Return weight and bias of the language-model head, tied or not."""
        head = self.causal_lm.get_output_embeddings()
        return head.weight, getattr(head, "bias", None)

    def head_inputs(self, hidden: Float[Tensor, "N D"]) -> HeadInputs:
        """Return hidden rows, head weight and bias as the fused ops take them.

        Under autocast the rows are bfloat16 and the head stays float32: the ops multiply in the narrower type, and the
        head's gradient is not rounded. Raises FastflowError where the head is cut, which `logprobs` and `flow_loss`
        take, too.
        """
        if self.cut_head is not None:
            raise FastflowError(
                "model.head = cut leaves no rank the whole head; an objective of your own must call policy.logprobs or "
                "policy.flow_loss in place of policy.head_inputs, or run with --model.head gathered"
            )
        weight, bias = self.head()
        return self.head_rows(hidden), weight, bias

    def logprobs(self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Compute the log-probs of targets by `fastflow_kernels.linear_logprob`, also where the head is cut."""
        if self.cut_head is not None:
            return self.cut_head.logprobs(self.head_rows(hidden), targets)
        rows, weight, bias = self.head_inputs(hidden)
        return linear_logprob(rows, weight, targets, bias=bias)

    def statistics(self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]) -> TokenStatistics:
        """Compute entropy, logsumexp and mean logit of each row, also where the head is cut."""
        if self.cut_head is not None:
            return self.cut_head.statistics(self.head_rows(hidden), targets)
        rows, weight, bias = self.head_inputs(hidden)
        return linear_logprob(rows, weight, targets, bias=bias, statistics=True)[1]

    def flow_loss(
        self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"], cu_seqlens: Tensor, **terms: Any
    ) -> FlowLoss:
        """Compute `fastflow_kernels.flow_loss`, also where the head is cut. terms: the op's other arguments."""
        if self.cut_head is not None:
            return self.cut_head.flow_loss(self.head_rows(hidden), targets, cu_seqlens, **terms)
        rows, weight, bias = self.head_inputs(hidden)
        return flow_loss(rows, weight, targets, cu_seqlens, bias=bias, **terms)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Compute logits of a few hidden rows in float32. Multiplies as the fused ops do."""
        if self.cut_head is not None:
            return self.cut_head.logits(self.head_rows(hidden))
        return head_logits(*self.head_inputs(hidden))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters that training changes."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @contextlib.contextmanager
    def decoding(self) -> Iterator[PreTrainedModel]:
        """Prepare the transformers model for cached, padded decoding: SDPA, no dropout. Restores it on exit."""
        config, was_training = self.causal_lm.config, self.model.training
        config._attn_implementation = "sdpa"
        self.model.eval()
        try:
            with self._autocast():
                yield self.causal_lm
        finally:
            config._attn_implementation = attention.NAME
            self.model.train(was_training)

    def head_rows(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return hidden rows in the type that the fused ops take."""
        return hidden.to(torch.bfloat16 if self.autocast else self.head()[0].dtype)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with contextlib.ExitStack() as entered:
            if self.autocast:
                entered.enter_context(torch.autocast(self.device.type, torch.bfloat16))
                if self.residual_stream == BFLOAT16:
                    entered.enter_context(in_bfloat16(self.causal_lm))
            yield


class FrozenModel(PackedModel):
    """A separate copy of the weights that never changes. settings: those of PackedModel."""

    def __init__(self, model: PreTrainedModel, **settings: Any):
        super().__init__(model, **settings)
        model.requires_grad_(False).eval()

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "T D"]:
        with torch.no_grad():
            return super().hidden_states(batch)


class AdaptersOff:
    """The base under LoRA: the policy with its adapters switched off. It takes no further memory."""

    def __init__(self, policy: PackedModel):
        if not has_adapters(policy.model):
            raise TypeError("the policy has no adapters that could be switched off")
        self.policy = policy
        self.vocab_size = policy.vocab_size
        self._adapted = policy.model

    def hidden_states(self, batch: PackedBatch) -> Float[Tensor, "T D"]:
        was_training = self._adapted.training
        self._adapted.eval()
        try:
            with torch.no_grad(), self._adapted.disable_adapter():
                return self.policy.hidden_states(batch)
        finally:
            self._adapted.train(was_training)

    def run(self, function: Callable[[], Result]) -> Result:
        return self.policy.run(function)

    def head_inputs(self, hidden: Float[Tensor, "N D"]) -> HeadInputs:
        return self.policy.head_inputs(hidden)

    def logprobs(self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        return self.policy.logprobs(hidden, targets)


def has_adapters(model: PreTrainedModel | PeftModel) -> TypeIs[PeftModel]:
    """Whether it is a peft model around a transformers model. Does not need peft to be installed."""
    return hasattr(model, "get_base_model")


def load_tokenizer(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model.path`. Raises FastflowError where that fails, or it has no end-of-sequence token."""
    from transformers import AutoTokenizer

    check_files(settings.path)
    check_tokenizer_files(settings.path)
    with loading(settings.path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise FastflowError(f"the tokenizer in {settings.path} has no eos_token; set one in its tokenizer_config.json")
    return tokenizer


def load_models(
    settings: ModelConfig, lora: LoraConfig, *, to_be_cut: bool = False
) -> tuple[PackedModel, PackedModel | AdaptersOff]:
    """Load policy and frozen base. Raises FastflowError for unreadable models and for vocabularies that differ.

    to_be_cut: leave the weights in their files where that works, until sharding.py cuts the models over ranks.
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
    compiled = settings.compile == "layers"
    layers = choose_layers(settings.fused_layers, model.device, suitable=fits(model.config), compiled=compiled)
    if layers == LIGER:
        fuse_layers(model)
    if compiled:
        check_compiler(model.device)
    arrange_layers(model, compiled=compiled, checkpoint_share=checkpoint_share)
    return "compiled" if compiled else layers


def check_same_vocabulary(policy: HasVocabulary, base: HasVocabulary, settings: ModelConfig) -> None:
    """Raise FastflowError where the heads of policy and base have different numbers of rows."""
    if policy.vocab_size != base.vocab_size:
        raise FastflowError(
            f"policy and base have different vocabularies: {settings.path} has {policy.vocab_size} rows in its head, "
            f"{settings.base} has {base.vocab_size}; choose a model.base of the same family"
        )


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, policy: HasVocabulary, settings: ModelConfig) -> None:
    """Raise FastflowError for a tokenizer with ids that have no row in the head."""
    if len(tokenizer) > policy.vocab_size:
        raise FastflowError(
            f"the tokenizer in {settings.path} has {len(tokenizer)} tokens, but the model's head only "
            f"{policy.vocab_size} rows; they do not belong together: check model.path"
        )


def end_ids(policy: PackedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a response: those of the tokenizer and of the model."""
    configured = policy.causal_lm.generation_config.eos_token_id if policy.causal_lm.generation_config else None
    configured = [configured] if isinstance(configured, int) else list(configured or [])
    return sorted({tokenizer.eos_token_id, *configured})


def resolve_device(name: str) -> torch.device:
    """Return the torch device for `model.device`; "auto" is CUDA where there is a device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not supported")
    except RuntimeError as error:
        raise FastflowError(f"model.device = {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FastflowError(f"model.device = {name}, but torch sees no CUDA device; use --model.device cpu")
    return device


def with_adapters(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Add LoRA adapters to a model. Raises FastflowError for targets that do not fit it."""
    peft = need("peft", extra="lora", purpose="lora.rank above 0")
    targets = lora.targets if lora.targets == "all-linear" else [name.strip() for name in lora.targets.split(",")]
    if ends := {"lm_head", "embed_tokens"}.intersection(targets):
        raise FastflowError(
            f"lora.targets names {', '.join(sorted(ends))}, but the fused loss reads the head's weight; leave them out"
        )
    adapters = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        return peft.get_peft_model(model, adapters)
    except ValueError as error:
        raise FastflowError(f"lora.targets = {lora.targets!r} does not fit this model: {error}") from error
