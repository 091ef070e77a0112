"""Puts the checks into Triton's interpreter: within `checked()` every launch runs over a checked memory."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from bench.checking.arguments import CHUNK_BYTES
from bench.checking.arithmetic import true_bfloat16
from bench.checking.findings import Findings
from bench.checking.launch import Launch, Rules
from bench.checking.poison import poisoned_allocations


class _Checks:
    """The interpreter's memory operations, for the launch that runs."""

    def __init__(self, rules: Rules, findings: Findings, launches: Counter[str]):
        self._rules, self._findings, self._launches = rules, findings, launches
        self._launch: Launch | None = None

    def run(self, executor: GridExecutor, *arguments, **named) -> None:
        self._launch = Launch(executor, arguments, named, self._rules, self._findings)
        self._launches[self._launch.kernel] += 1
        self._launch.run()

    def report(self, kind: str, words: str) -> None:
        self._launch.report(kind, words)

    def load(self, builder, pointers: TensorHandle, mask: TensorHandle, other: TensorHandle | None, *_, **__):
        element = pointers.get_element_ty()
        addresses, lanes = _lanes(pointers, mask)
        if other is None and not lanes.all():
            self.report("undefined", "a load with a mask and without `other`")
        values = np.zeros(1) if other is None else other.data
        return TensorHandle(
            self._launch.memory.load(addresses, lanes, values, interpreter._get_np_dtype(element)), element
        )

    def store(self, builder, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *_, **__) -> None:
        addresses, lanes = _lanes(pointers, mask)
        self._launch.memory.store(addresses, value.data, lanes)

    def update(self, builder, operation, pointers: TensorHandle, value, mask: TensorHandle, *more):
        """An atomic operation."""
        addresses, lanes = _lanes(pointers, mask)
        places, allowed = self._launch.memory.update(addresses, lanes)
        handles = TensorHandle(places, pointers.dtype), value, TensorHandle(allowed, tl.int1)
        return _update(builder, operation, *handles, *more)

    def refuse(self, builder, *_):
        raise NotImplementedError(
            "bench.checking models no compare-and-swap; teach interpreter.py before a kernel uses it."
        )

    def store_descriptor(self, builder, descriptor, value: TensorHandle, indices: list) -> None:
        """TMA leaves out what lies outside of the tensor, in whole chunks of a row."""
        pointers, mask = descriptor.materialize_pointers(indices)
        mask = mask if isinstance(mask, TensorHandle) else TensorHandle(mask, tl.int1)  # as triton 3.6 gives it
        self.store(builder, pointers, value, mask)
        width, entries = int(descriptor.shape[-1].data.item()), CHUNK_BYTES // value.data.itemsize
        columns = indices[-1].data + np.arange(descriptor.block_shape[-1])
        rest = (columns >= width) & (columns < -(-width // entries) * entries)
        is_row = mask.data[..., :1] & (indices[-1].data < width)
        if (is_row & rest).any():
            self._launch.memory.overwrite_chunk(pointers.data, value.data, is_row & rest)

    def require(self, builder, condition: TensorHandle, message: str) -> None:
        """A device_assert: the kernel's own, or the interpreter's over sums and products of integers."""
        if not np.asarray(condition.data).all():
            self.report("overflow" if "overflow" in str(message) else "assertion", str(message))


_update = InterpreterBuilder.create_atomic_rmw


def _lanes(pointers: TensorHandle, mask: TensorHandle) -> tuple[np.ndarray, np.ndarray]:
    addresses = np.asarray(pointers.data)
    return addresses, np.broadcast_to(np.asarray(mask.data), addresses.shape)


@contextlib.contextmanager
def checked(rules: Rules, findings: Findings, launches: Counter[str]) -> Iterator[None]:
    """Within it, launches are checked by these rules; counts the launches of each kernel.

    The process must interpret kernels: TRITON_INTERPRET=1 before Triton is imported.
    """
    checks = _Checks(rules, findings, launches)
    replaced = {
        "create_masked_load": checks.load,
        "create_masked_store": checks.store,
        "create_atomic_rmw": checks.update,
        "create_atomic_cas": checks.refuse,
        "create_descriptor_store": checks.store_descriptor,
        "create_assert": checks.require,
    }
    builder = interpreter.interpreter_builder
    strict = interpreter.InterpreterOptions(debug=True, sanitize_overflow=True)
    with contextlib.ExitStack() as stack:
        for name, method in replaced.items():
            stack.enter_context(mock.patch.object(InterpreterBuilder, name, _as_method(method)))
        stack.enter_context(mock.patch.object(GridExecutor, "__call__", _as_method(checks.run)))
        stack.enter_context(mock.patch.object(builder, "options", strict))
        stack.enter_context(true_bfloat16(checks.report))
        stack.enter_context(poisoned_allocations())
        stack.enter_context(np.errstate(all="ignore"))
        yield


def _as_method(function):
    """A bound method that takes the patched object as its first argument."""
    return lambda patched, *arguments, **named: function(patched, *arguments, **named)
