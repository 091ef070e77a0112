"""How checkpoints name the experts of a mixture: each weight of each expert for itself, as vLLM reads them, too.

In memory, transformers holds the experts of a layer as two parameters: `gate_up_proj` (E, 2 I, D) and `down_proj`
(E, D, I). Every weight of the checkpoint is a contiguous part of one of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fastflow.errors import FastflowError
from fastflow.models.layers.experts import has_experts
from fastflow.models.weights.stored import OtherFiles, StoredWeight, find_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

JOINED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
OF_AN_EXPERT = re.compile(r"(?P<layer>.+\.experts)\.(?P<expert>\d+)\.(?P<which>gate_proj|up_proj|down_proj)\.weight")


class ExpertMissing(OtherFiles):
    """The files hold a layer's experts in part."""


@dataclass(frozen=True)
class Part:
    """A weight of the checkpoint in a parameter of the model. offset: its first number there."""

    name: str
    offset: int
    shape: torch.Size

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this part of a tensor. It shares memory with one that is contiguous."""
        return whole.reshape(-1)[self.offset : self.offset + self.shape.numel()].view(self.shape)


def parts_of(config: PretrainedConfig, name: str, shape: torch.Size) -> list[Part]:
    """Return the weights that a checkpoint holds in place of a parameter: itself, unless it is one of experts."""
    return list(_of_experts(name, shape)) if has_experts(config) and is_of_experts(name) else [Part(name, 0, shape)]


def is_of_experts(name: str) -> bool:
    layer, _, which = name.rpartition(".")
    return layer.endswith(".experts") and which in JOINED


def _of_experts(name: str, shape: torch.Size) -> Iterator[Part]:
    layer, _, joined = name.rpartition(".")
    experts, rows, width = shape
    pieces = JOINED[joined]
    each = torch.Size((rows // len(pieces), width))
    for expert in range(experts):
        for place, piece in enumerate(pieces):
            offset = (expert * len(pieces) + place) * each.numel()
            yield Part(f"{layer}.{expert}.{piece}.weight", offset, each)


def join_experts(found: Mapping[str, StoredWeight], experts: int) -> dict[str, StoredWeight]:
    """Put the weights of a layer's experts together under the names of the model's parameters. The others stay.

    Raises OtherFiles where they are not alike, or too many; ExpertMissing where one is missing.
    """
    joined = {name: stored for name, stored in found.items() if not OF_AN_EXPERT.fullmatch(name)}
    layers: dict[str, dict[tuple[int, str], StoredWeight]] = {}
    for name, stored in found.items():
        if place := OF_AN_EXPERT.fullmatch(name):
            layers.setdefault(place["layer"], {})[int(place["expert"]), place["which"]] = stored
    for layer, weights in layers.items():
        if experts <= (last := max(expert for expert, _ in weights)):
            raise OtherFiles(f"its files have {layer}.{last}, and its config.json names {experts} experts")
        for parameter, pieces in JOINED.items():
            wanted = [[(expert, piece) for piece in pieces] for expert in range(experts)]
            if missing := [key for row in wanted for key in row if key not in weights]:
                raise ExpertMissing(f"its files have no {layer}.{missing[0][0]}.{missing[0][1]}.weight")
            rows = [tuple(weights[key] for key in row) for row in wanted]
            joined[f"{layer}.{parameter}"] = _joined(f"{layer}.{parameter}", rows)
    return joined


def check_experts(path: str, experts: int) -> None:
    """Raise FastflowError where the files of a mixture lack a weight of an expert, which transformers says in many
    lines. Accepts files that are not read row by row.
    """
    try:
        join_experts(find_weights(path), experts)
    except ExpertMissing as why:
        raise FastflowError(f"cannot load the model {path}: {why}; download or copy its files again") from why
    except OtherFiles:
        return


def _joined(name: str, rows: list[tuple[StoredWeight, ...]]) -> StoredWeight:
    first = rows[0][0]
    if any((one.dtype, one.shape) != (first.dtype, first.shape) for row in rows for one in row):
        raise OtherFiles(f"the experts of {name} differ in shape or type")
    height, width = first.shape
    return replace(first, name=name, shape=(len(rows), len(rows[0]) * height, width), rows=tuple(rows))
