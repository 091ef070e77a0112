"""An embedding that stays cut over the ranks, because it is a head that does (head.py): nobody gathers it.

Each rank asks those that keep its tokens' rows for them, and sends them the gradients back. So two times the tokens'
hidden states travel, and each rank's rows get the gradient of all ranks' tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from fastflow.models.cut.head import CutHead
from fastflow.models.layers.embedding import factor_of, finish, puts_out_float32
from fastflow.models.pulse import PULSE
from fastflow_kernels import VocabularyShard


class CutEmbedding(nn.Module):
    """Takes the place of an embedding whose weight `head` has cut already, and puts out what that does. Calls are
    collectives of the ranks that share the weight; each brings as many tokens as it likes.
    """

    embed_scale: Tensor | None

    def __init__(self, embedding: nn.Module, head: CutHead):
        super().__init__()
        self.weight = head.parameter
        self.padding_idx = getattr(embedding, "padding_idx", None)  # a token whose row learns nothing here
        self.register_buffer("embed_scale", factor_of(embedding), persistent=False)
        self._in_float32 = puts_out_float32(embedding)
        self._head = head

    def forward(self, ids: Int64[Tensor, "*ids"]) -> Float[Tensor, "*ids D"]:
        errand = Errand.ask(ids.flatten(), max(self._head.sizes), self._head.shard)
        rows = _Rows.apply(self._head.own(self.weight), ids.flatten(), self.padding_idx, errand)
        return finish(rows.float() if self._in_float32 else rows, self.embed_scale).view(*ids.shape, rows.shape[1])


@dataclass(frozen=True)
class Errand:
    """Who asks whom for which rows. order: of this rank's tokens, by the rank that keeps their rows. asked, answers:
    tokens that it asks each rank for, and that each asks it for. places: of the latter, among the rows that it keeps.
    """

    order: Int64[Tensor, " n"]
    asked: list[int]
    answers: list[int]
    places: Int64[Tensor, " m"]
    shard: VocabularyShard

    @classmethod
    def ask(cls, ids: Int64[Tensor, " n"], most: int, shard: VocabularyShard) -> Errand:
        """Tell the ranks which rows this one needs. most: rows that each keeps, but for the last ones."""
        ranks = dist.get_world_size(shard.group)
        keeper = ids // most
        order = keeper.argsort(stable=True)
        asked = keeper.bincount(minlength=ranks)
        PULSE.beat()
        of_all = shard.gathered(asked)  # (ranks that ask, ranks that keep)
        own = dist.get_rank(shard.group)
        asked_of, answers = torch.stack([of_all[own], of_all[:, own]]).tolist()
        errand = cls(order, asked_of, answers, order, shard)
        return cls(order, asked_of, answers, errand.to_keepers(ids) - shard.start, shard)

    def to_keepers(self, own: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
        """Send what belongs to this rank's tokens to the ranks that keep their rows. Returns what comes here."""
        return self._exchange(own[self.order], self.answers, self.asked)

    def to_askers(self, rows: Shaped[Tensor, "m ..."]) -> Shaped[Tensor, "n ..."]:
        """Send rows to the ranks that ask for them. Returns those of this rank's tokens, in their order."""
        found = self._exchange(rows, self.asked, self.answers)
        own = torch.empty_like(found)
        own[self.order] = found
        return own

    def _exchange(self, rows: Tensor, received: list[int], sent: list[int]) -> Tensor:
        PULSE.beat()
        found = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(found, rows.contiguous(), received, sent, group=self.shard.group)
        return found


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Tensor, ids: Tensor, padding_idx: int | None, errand: Errand) -> Tensor:
        ctx.errand, ctx.like = errand, (kept.shape, kept.dtype, kept.device)
        ctx.learns = None if padding_idx is None else ids != padding_idx
        return errand.to_askers(kept[errand.places])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        shape, dtype, device = ctx.like
        gradient = upstream[0] if ctx.learns is None else upstream[0] * ctx.learns.unsqueeze(1)
        total = torch.zeros(shape, dtype=dtype, device=device)
        return total.index_add_(0, ctx.errand.places, ctx.errand.to_keepers(gradient)), None, None, None
