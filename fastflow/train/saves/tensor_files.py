"""Where PyTorch's distributed checkpoint meets the disk: safetensors files, written from where the tensors lie.

Its own writer puts each file together in memory first, and no other Python thread runs meanwhile: training beside a
save would stand still for about a second in each gigabyte.
"""

from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future


class Stored(NamedTuple):
    """What the index of the files is made of."""

    relative_path: str
    length: int


class TensorFilesWriter(HuggingFaceStorageWriter):
    """Writes whole tensors of the host. Takes files' numbers by name, `fqn_to_index_mapping`."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        numbers = plan.storage_data["fqn_to_index_mapping"]
        last, results = max(numbers.values()), []
        for number in sorted(set(numbers.values())):
            name = f"model-{number:05}-of-{last:05}.safetensors"
            items = [item for item in plan.items if numbers[item.index.fqn] == number]
            tensors = {item.index.fqn: cast("torch.Tensor", planner.resolve_data(item)) for item in items}
            save_file(tensors, Path(self.path) / name)
            sizes = [(item.index, tensors[item.index.fqn].nbytes) for item in items]
            results += [WriteResult(index, size, Stored(name, size)) for index, size in sizes]
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written
