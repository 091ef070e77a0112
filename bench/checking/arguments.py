"""One pointer argument of a launch: an address space that holds the elements of the tensor's view, and nothing else."""

import numpy as np
from torch import Tensor

SPACE_BITS = 44  # of the addresses of one argument
CHUNK_BYTES = 16  # which a TMA store may write as a whole


class PointerArgument:
    """Translates between the addresses that a kernel sees and the memory of the tensor.

    A kernel sees base + bytes from the first element, with `number` in the bits above SPACE_BITS. A tensor on the
    meta device has addresses and no memory.
    """

    def __init__(self, name: str, tensor: Tensor, number: int):
        self.name, self.number, self.tensor = name, number, tensor
        self.has_memory = tensor.device.type == "cpu"
        self.memory = tensor.data_ptr() if self.has_memory else 0  # address of the first element
        self.base = (number << SPACE_BITS) + self.memory % 4096  # aligned as the memory is
        self.written = np.zeros(tuple(tensor.shape), bool) if self.has_memory else None

    def locate(self, addresses: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """The index of each address in the view, one array a dimension, and whether it is an element's at all."""
        size, strides = self.tensor.element_size(), self.tensor.stride()
        offset = addresses.astype(np.int64) - np.int64(self.base)
        is_element = offset % size == 0
        rest = offset // size
        index = {}
        for dimension in sorted(range(len(strides)), key=lambda dimension: -strides[dimension]):
            length, stride = self.tensor.shape[dimension], strides[dimension]
            index[dimension] = np.zeros_like(rest) if length == 1 else rest // max(stride, 1)
            is_element &= (index[dimension] >= 0) & (index[dimension] < length)
            rest = rest - index[dimension] * (stride if length > 1 else 0)
        return tuple(index[dimension] for dimension in range(len(strides))), is_element & (rest == 0)

    def in_memory(self, addresses: np.ndarray) -> np.ndarray:
        """The tensor's own addresses; those of the space itself where it has no memory."""
        return addresses - np.uint64(self.base) + np.uint64(self.memory) if self.has_memory else addresses

    def memory_end(self) -> int:
        """The address, as a kernel sees it, behind the last byte of the tensor's storage."""
        before = self.tensor.storage_offset() * self.tensor.element_size()
        return self.base + self.tensor.untyped_storage().nbytes() - before


def number_of(addresses: np.ndarray) -> np.ndarray:
    """The argument that each address belongs to."""
    return addresses >> np.uint64(SPACE_BITS)
