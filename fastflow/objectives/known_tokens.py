"""What is known of every response token before an update, computed for the objectives that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from fastflow.data.packing import PackedBatch
from fastflow.data.trajectory import Group, flatten
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import repeat_per_token, sum_per_sequence
from fastflow.models.share import Share
from fastflow_kernels import TokenStatistics


@dataclass(frozen=True)
class Certainty:
    """How sure the policy is of n responses, means over their tokens, nats; 0 for an empty response.

    entropy: of the next-token distributions. self_certainty: logsumexp(logits) - mean(logits), which is
    KL(uniform || pi) + log V.
    """

    entropy: Float64[Tensor, " n"]
    self_certainty: Float64[Tensor, " n"]


@dataclass(frozen=True)
class KnownTokens:
    """The response tokens of an update: n responses with M tokens in all, in flat order on the policy's device.

    Each property is computed when it is first asked for. Those of the models are collectives: all ranks must ask.
    base_logprobs: of this rank's micro-batches.
    """

    policy: PackedModel
    share: Share
    groups: Sequence[Group]
    base_logprobs: Sequence[Float32[Tensor, " _"]]

    @cached_property
    def behaviour(self) -> Float32[Tensor, " M"]:
        """Log-probs under the distribution that each token was drawn from, nats."""
        return self._on_device([trajectory.behaviour_logprobs for trajectory in flatten(self.groups)])

    @cached_property
    def base(self) -> Float32[Tensor, " M"]:
        """Log-probs under the frozen base, nats."""
        return self._on_device(self.share.split(self.base_logprobs))

    @cached_property
    def seeds(self) -> Int64[Tensor, " n"]:
        """The seed of each response."""
        return torch.tensor([trajectory.seed for trajectory in flatten(self.groups)]).to(self.share.device)

    @cached_property
    def certainty(self) -> Certainty:
        """That of the policy as it is now, from one more pass over the responses, without gradient."""
        with self.policy.eval_mode():
            sums = [self._sums(batch) for batch, _ in self.share.batches()]
        length = torch.tensor(self.share.lengths, dtype=torch.float64, device=self.share.device).clamp(min=1)
        return Certainty(*(self.share.flat(list(values)) / length for values in zip(*sums, strict=True)))

    def of_batch(self, values: Float[Tensor, " M"], batch: PackedBatch) -> Float[Tensor, " N"]:
        """Those of the batch's response tokens, in its order."""
        starts_in_batch = batch.response_cu_seqlens[:-1].to(values.device, non_blocking=True)
        shift = repeat_per_token(self._starts[batch.sequences] - starts_in_batch, batch.response_lengths)
        return values[shift + torch.arange(len(shift), device=values.device)]

    @cached_property
    def _starts(self) -> Int64[Tensor, " n"]:
        """Tokens ahead of each response."""
        lengths = torch.tensor(self.share.lengths, dtype=torch.int64)
        return (lengths.cumsum(0) - lengths).to(self.share.device)

    def _on_device(self, arrays: Sequence[Float32[np.ndarray, " _"]]) -> Float32[Tensor, " M"]:
        return torch.from_numpy(np.concatenate(arrays).astype(np.float32)).to(self.share.device)

    @torch.no_grad()
    def _sums(self, batch: PackedBatch) -> tuple[Float64[Tensor, " S"], Float64[Tensor, " S"]]:
        """Entropy and self-certainty, summed over each response of a batch."""

        def forward() -> TokenStatistics:
            return self.policy.statistics(self.policy.hidden_states(batch)[batch.rows], batch.targets)

        found = self.policy.run(forward)
        return sum_per_sequence(found.entropy, batch), sum_per_sequence(found.logsumexp - found.mean_logit, batch)
