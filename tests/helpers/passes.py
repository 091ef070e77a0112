"""Hidden states of sequences in one packed batch, and of the same sequences alone."""

from __future__ import annotations

import numpy as np
import torch

from fastflow.data.packing import pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel


def packed_hidden(model: PackedModel, sequences: list[np.ndarray]) -> list[torch.Tensor]:
    nothing = Trajectory(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), "length")
    (batch,) = pack([Group(Prompt(ids), (nothing,)) for ids in sequences], tokens_per_microbatch=10**9)
    with torch.no_grad():
        parts = model.hidden_states(batch).split(batch.lengths)
    return [parts[batch.sequences.tolist().index(index)] for index in range(len(sequences))]


def alone_hidden(model: PackedModel, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad(), model.decoding() as plain:
        return plain.model(torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
