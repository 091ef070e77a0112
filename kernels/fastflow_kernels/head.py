"""Holds a language-model head in the types that its products multiply in, and says which logits it means."""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastflow_kernels.matmul import accumulator_dtype, direction_dtype
from fastflow_kernels.shard import VocabularyShard


def factors_of(weight: Tensor, factor_dtype: torch.dtype, vocabulary: int | None = None) -> Tensor:
    """Take the first `vocabulary` rows of a head's weight (None: all) as products multiply them, without gradient.

    Contiguous, in this type; the weight's own memory where it has both.
    """
    return weight.detach()[:vocabulary].to(factor_dtype).contiguous()


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
        factors: Tensor,
        bias: Tensor | None,
        *,
        temperature: float = 1.0,
        softcap: float | None = None,
        shard: VocabularyShard | None = None,
    ) -> "Head":
        """Take a weight as `factors_of` has made it, and its bias as it is: a parameter, or None."""
        if bias is not None:
            bias = bias.detach()[: len(factors)].to(accumulator_dtype(factors.dtype)).contiguous()
        return cls(factors, bias, temperature, softcap, shard)

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @functools.cached_property
    def direction_weight(self) -> Tensor:
        """The weight in the type in which a direction multiplies it; made once, where that is another type."""
        return self.weight.to(direction_dtype(self.weight.dtype))

    def like_the_largest_shard(self) -> "Head":
        """Return a stand-in with the shape of the largest shard, to choose a size that all ranks must share.

        Its weight has the shape alone, not the values.
        """
        if self.shard is None:
            return self
        vocabulary = self.shard.largest_vocabulary(self.vocabulary, self.weight.device)
        return replace(self, weight=self.weight[:1].expand(vocabulary, -1))

    @property
    def absent_logit(self) -> float:
        """Stand for the logit of a target that is no column here.

        With shards it is 0, to which the owner's logit is added (shard.py). Without, the target does not exist: nan
        spreads to all that depends on it.
        """
        return math.nan if self.shard is None else 0.0

    def columns(self, targets: Tensor) -> Tensor:
        """Count targets as columns of this head; outside of [0, V) where another shard has them."""
        return targets if self.shard is None else targets - self.shard.start

    def holds(self, columns: Tensor) -> Tensor:
        return (columns >= 0) & (columns < self.vocabulary)
