"""The memory of one launch as its kernel sees it: every load and store is resolved, judged, then done."""

from collections.abc import Callable

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import _interpreter

from bench.checking.arguments import CHUNK_BYTES, PointerArgument, number_of
from bench.checking.poison import is_poison
from bench.checking.races import Accesses, distinct


class Memory:
    """All pointer arguments of a launch, and what the program that runs has touched."""

    def __init__(self, report: Callable[[str, str], None], random: np.random.Generator):
        self.arguments: dict[int, PointerArgument] = {}  # by number, from 1
        self.program = Accesses()
        self._report, self._random = report, random

    def add(self, name: str, tensor: Tensor) -> PointerArgument:
        number = len(self.arguments) + 1
        self.arguments[number] = PointerArgument(name, tensor, number)
        return self.arguments[number]

    def load(self, addresses: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: type) -> np.ndarray:
        """`other` where a lane is switched off or out of bounds; of the meta device, numbers from -1 to 1 or 0."""
        places, is_real, is_imagined = self._resolve(addresses, mask, "load")
        values = np.array(np.broadcast_to(other, addresses.shape), dtype=dtype, order="C")
        if is_real.any():
            values = np.asarray(_interpreter.load(places, is_real, values, np.dtype(dtype)))
            count = int((is_real & is_poison(values)).sum())
            if count:
                self._report("poison", f"{count} lanes load what nobody wrote")
        if is_imagined.any() and np.issubdtype(dtype, np.floating):
            values[is_imagined] = self._random.uniform(-1, 1, int(is_imagined.sum()))
        touched = distinct(places[is_real | is_imagined])
        if self.program.has_stored(touched):
            self._report("reread", "loads an address that this program stored to")
        self.program.add("loads", touched)
        return values

    def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        places, is_real, is_imagined = self._resolve(addresses, mask, "store")
        if is_real.any():
            _interpreter.store(places, np.array(np.broadcast_to(values, places.shape), order="C"), is_real)
        touched = places[is_real | is_imagined]
        once = distinct(touched)
        if len(once) < len(touched):
            self._report("race", "two lanes of one store share an address")
        self.program.add("stores", once)

    def update(self, addresses: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For an atomic operation: the addresses in memory, and the lanes to be done there."""
        places, is_real, is_imagined = self._resolve(addresses, mask, "store")
        self.program.add("atomics", distinct(places[is_real | is_imagined]))
        return places, is_real

    def overwrite_chunk(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        """What a TMA store writes behind the last column, to the end of a chunk; no program may need what stood there.

        Padding between rows takes it. The last row needs as much memory behind it.
        """
        argument = self.arguments[int(number_of(addresses[mask])[0])]
        if not argument.has_memory:
            return
        is_inside = mask & (addresses < np.uint64(argument.memory_end()))
        _interpreter.store(argument.in_memory(addresses), np.ascontiguousarray(values), is_inside)
        if (mask & ~is_inside).any():
            words = f"a TMA store writes whole chunks of {CHUNK_BYTES} bytes, the last row's behind its memory"
            self._report("bounds", f"{argument.name}: {words}")

    def _resolve(self, addresses: np.ndarray, mask: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(addresses in memory, lanes whose memory exists, lanes on the meta device); reports and leaves out others."""
        places = np.zeros(addresses.shape, np.uint64)
        is_real, is_imagined = np.zeros((2, *addresses.shape), bool)
        for number in distinct(number_of(addresses[mask])).tolist():
            lanes = mask & (number_of(addresses) == number)
            argument = self.arguments.get(number)
            if argument is None:
                self._report("bounds", f"{what} at an address of no argument, {int(lanes.sum())} lanes")
                continue
            index, is_element = argument.locate(addresses)
            self._report_outside(argument, index, lanes & ~is_element, what)
            lanes &= is_element
            if what == "store" and argument.has_memory:
                argument.written[tuple(part[lanes] for part in index)] = True
            places[lanes] = argument.in_memory(addresses[lanes])
            (is_real if argument.has_memory else is_imagined)[lanes] = True
        return places, is_real, is_imagined

    def _report_outside(self, argument: PointerArgument, index: tuple, lanes: np.ndarray, what: str) -> None:
        if lanes.any():
            first, shape = [int(part[lanes][0]) for part in index], list(argument.tensor.shape)
            self._report(
                "bounds", f"{what} of {argument.name}{first}, whose shape is {shape}, {int(lanes.sum())} lanes"
            )
