"""Reads the weights of a hollow model into its parts: on each rank the rows that it keeps, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import rows_of
from fastflow.models.pulse import PULSE
from fastflow.models.ranks import Ranks
from fastflow.models.weights.frozen_weights import hold_in_bfloat16
from fastflow.models.weights.hollow import Unread, exchange, hollow_tensor
from fastflow.models.weights.loading import loading
from fastflow.models.weights.stored import Reader, StoredWeight


def hold_unread_in_bfloat16(model: nn.Module, unread: Unread, ranks: Ranks) -> None:
    """Do what hold_in_bfloat16 does, before the weights are read. All ranks look at rows of their own of the weights
    that their files hold in another type, and so decide alike.
    """
    with unread.reader.closing() as reader, ranks.together(), loading(unread.path, "model"):
        rounded = torch.tensor([
            _rounds(stored, reader, ranks) if parameter.dtype == torch.float32 else True
            for parameter, stored in unread.places.items()
        ])  # fmt: skip
    rounded = ranks.sum(rounded.long()) > 0
    exact = {parameter for parameter, rounds in zip(unread.places, rounded.tolist(), strict=True) if not rounds}

    def narrow(weight: torch.Tensor) -> torch.Tensor | None:
        return hollow_tensor(weight, torch.bfloat16, weight.device) if weight in exact else None

    hold_in_bfloat16(model, narrow)


def empty(model: nn.Module, unread: Unread) -> dict[str, StoredWeight]:
    """Bring hollow weights to the meta device, where a model can be cut. Returns their places by name."""
    names = {name: unread.places[one] for name, one in model.named_parameters() if one in unread.places}
    others = {
        parameter: nn.Parameter(torch.empty_like(parameter, device="meta").contiguous(), parameter.requires_grad)
        for parameter in unread.places
    }
    exchange(model, others)
    return names


@torch.no_grad()
def fill(
    model: nn.Module, places: Mapping[str, StoredWeight], unread: Unread, device: torch.device, ranks: Ranks
) -> None:
    """Give the parts of a model that was cut on the meta device their memory and their weights. places: by name.

    Raises FastflowError on all ranks where a file cannot be read any more.
    """
    from torch.distributed.tensor import DTensor

    filled: dict[nn.Parameter, nn.Parameter] = {}
    with ranks.together(), loading(unread.path, "model"), unread.reader.closing() as reader:
        for name, parameter in _by_file(model.named_parameters(), places):
            PULSE.beat()
            start, stop = rows_of(parameter)
            rows = reader.rows(places[name], start, stop)
            moved = rows.to(device)
            local = moved.to(parameter.dtype, copy=moved is rows)  # rows share the memory of their file
            cut: Any = parameter
            if isinstance(parameter, DTensor):
                local = DTensor.from_local(
                    local, cut.device_mesh, cut.placements, run_check=False, shape=cut.shape, stride=cut.stride()
                )
            filled[parameter] = nn.Parameter(local, parameter.requires_grad)
    exchange(model, filled)
    if left := [name for name, one in model.named_parameters() if one.is_meta]:
        raise FastflowError(f"{unread.path} was cut without its {left[0]}; this is a fault of fastflow, report it")


def _by_file(
    named: Iterable[tuple[str, nn.Parameter]], places: Mapping[str, StoredWeight]
) -> list[tuple[str, nn.Parameter]]:
    """Order weights by the file that holds them, so that each is opened once."""
    return sorted(((name, one) for name, one in named if name in places), key=lambda entry: str(places[entry[0]].file))


def _rounds(stored: StoredWeight, reader: Reader, ranks: Ranks) -> bool:
    """Whether bfloat16 would change one of this rank's rows."""
    if stored.dtype == torch.bfloat16:
        return False
    share = -(-stored.shape[0] // ranks.count)
    rows = reader.rows(stored, ranks.rank * share, min((ranks.rank + 1) * share, stored.shape[0])).float()
    return not torch.equal(rows.to(torch.bfloat16).float(), rows)
