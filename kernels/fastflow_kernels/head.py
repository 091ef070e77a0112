"""A language-model head in the types its products multiply in, and the logits that it means."""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastflow_kernels.matmul import accumulator_dtype, direction_dtype
from fastflow_kernels.shard import VocabularyShard


@dataclass(frozen=True)
class Head:
    """logits = softcap(hidden @ weight^T + bias) / temperature, where softcap(x) = c tanh(x / c), or x for None."""

    weight: Tensor  # (V, D), contiguous, in the type of the products; padding rows are cut off
    bias: Tensor | None  # (V,), in accumulator type
    temperature: float = 1.0
    softcap: float | None = None
    shard: VocabularyShard | None = None

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        factor_dtype: torch.dtype,
        *,
        vocabulary: int | None = None,
        temperature: float = 1.0,
        softcap: float | None = None,
        shard: VocabularyShard | None = None,
    ) -> "Head":
        """From a parameter: its first `vocabulary` rows (None: all), converted where it has another type."""
        used = weight.detach()[:vocabulary].to(factor_dtype).contiguous()
        used_bias = (
            None if bias is None else bias.detach()[:vocabulary].to(accumulator_dtype(factor_dtype)).contiguous()
        )
        return cls(used, used_bias, temperature, softcap, shard)

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @functools.cached_property
    def direction_weight(self) -> Tensor:
        """The weight in the type that it is multiplied in by a direction; made once, where that is another type."""
        return self.weight.to(direction_dtype(self.weight.dtype))

    def like_the_largest_shard(self) -> "Head":
        """Its stand-in where a size is chosen that all ranks must share: the weight's shape, none of its values."""
        if self.shard is None:
            return self
        vocabulary = self.shard.largest_vocabulary(self.vocabulary, self.weight.device)
        return replace(self, weight=self.weight[:1].expand(vocabulary, -1))

    @property
    def absent_logit(self) -> float:
        """Stands for the logit of a target that is no column here: 0, which other shards add to (shard.py); else nan,
        which spreads to all that depends on a target that does not exist."""
        return math.nan if self.shard is None else 0.0

    def columns(self, targets: Tensor) -> Tensor:
        """Targets as columns of this head; negative or beyond its vocabulary where another shard has them."""
        return targets if self.shard is None else targets - self.shard.start

    def holds(self, columns: Tensor) -> Tensor:
        return (columns >= 0) & (columns < self.vocabulary)
