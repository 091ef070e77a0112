"""Reads PackedBatches with policy and frozen base: hidden states, and the language-model head apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fastflow.config.model_sections import ResidualStream
from fastflow.data.packing import PackedBatch
from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import Root, run_inside
from fastflow.models.layers import attention, rope
from fastflow.models.layers.embedding import factor_in_bfloat16
from fastflow.models.layers.experts import has_experts, rounded_once, take_experts, without_router_logits
from fastflow.models.layers.fused_layers import PLAIN
from fastflow.models.layers.linear_attention import keep_sequences_apart
from fastflow.models.layers.residual_stream import BFLOAT16, in_bfloat16
from fastflow.models.ranks import Ranks
from fastflow.models.weights.hollow import Unread
from fastflow_kernels import FlowLoss, TokenStatistics, flow_loss, linear_logprob
from fastflow_kernels.sampling import head_logits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel
    from typing_extensions import TypeIs

    from fastflow.models.cut.head import CutHead

Result = TypeVar("Result")
HeadInputs = tuple[Float[Tensor, "N D"], Float[Tensor, "V D"], Float[Tensor, " V"] | None]  # rows, weight, bias


class PackedModel:
    """A causal LM that reads PackedBatches: hidden states without the head, and the head apart.

    model: a transformers causal LM, or a peft model around one. kernel: its packed attention. autocast: run the
    transformer body in bfloat16. residual_stream: its type under autocast (layers/residual_stream.py). layers: the
    kind of its layers, for the announcement. version: optimiser updates that the weights have seen. ranks, root: those
    that it is cut over, and what holds its parts together (cut/sharding.py). unread: where its weights are, until it
    is cut; None where it has them. cut_head: the head, where it is one of these parts for good.
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
        keep_sequences_apart(self.causal_lm)
        take_experts(self.causal_lm.config)
        self._is_mixture = has_experts(self.causal_lm.config)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model without the peft wrapper."""
        return cast("PreTrainedModel", self.model.get_base_model()) if has_adapters(self.model) else self.model

    @property
    def device(self) -> torch.device:
        return self.causal_lm.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that its body multiplies in."""
        return torch.bfloat16 if self.autocast else next(self.causal_lm.parameters()).dtype

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
    def eval_mode(self) -> Iterator[None]:
        """Run the model without dropout. On exit it is in the mode that it came in."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextlib.contextmanager
    def decoding(self) -> Iterator[PreTrainedModel]:
        """Prepare the transformers model for cached, padded decoding: SDPA, no dropout. Restores it on exit."""
        config = self.causal_lm.config
        config._attn_implementation = "sdpa"
        try:
            with self.eval_mode(), self._autocast(), self._experts_rounded_once():
                yield self.causal_lm
        finally:
            config._attn_implementation = attention.NAME

    def head_rows(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return hidden rows as the fused ops take them: in their type, and divided by what divides the logits."""
        divisor = logits_divisor(self.causal_lm.config)
        scaled = hidden if divisor == 1 else hidden / divisor
        return scaled.to(torch.bfloat16 if self.autocast else self.head()[0].dtype)

    def _experts_rounded_once(self) -> contextlib.AbstractContextManager[None]:
        """Keep rounded experts, unless other ranks have their parts: no rank has room for all."""
        if self._is_mixture and self.root is None:
            return rounded_once(self.causal_lm)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with contextlib.ExitStack() as entered:
            if getattr(self.causal_lm.config, "output_router_logits", False):
                entered.enter_context(without_router_logits(self.causal_lm.config))
            if self.autocast:
                entered.enter_context(torch.autocast(self.device.type, torch.bfloat16))
                entered.enter_context(factor_in_bfloat16(self.causal_lm))
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
        with self.policy.eval_mode(), torch.no_grad(), self._adapted.disable_adapter():
            return self.policy.hidden_states(batch)

    def run(self, function: Callable[[], Result]) -> Result:
        return self.policy.run(function)

    def head_inputs(self, hidden: Float[Tensor, "N D"]) -> HeadInputs:
        return self.policy.head_inputs(hidden)

    def logprobs(self, hidden: Float[Tensor, "N D"], targets: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        return self.policy.logprobs(hidden, targets)


def logits_divisor(config: PretrainedConfig) -> float:
    """Return what a model divides its logits by, as Granite does."""
    return float(getattr(config, "logits_scaling", None) or 1.0)


def has_adapters(model: PreTrainedModel | PeftModel) -> TypeIs[PeftModel]:
    """Whether it is a peft model around a transformers model. Does not need peft to be installed."""
    return hasattr(model, "get_base_model")
