"""Peak memory of one call above that with the inputs made, and memory filled with NaN before the first call."""

import contextlib
import multiprocessing
from collections.abc import Iterator

import torch

from bench.peak import peak_of
from bench.problem import make_problems, problems_of
from bench.providers.provider import Provider
from bench.shapes import Group, Shape

TINY = Shape(8, 8, 8)


def cpu_peak(provider: Provider, group: Group, mean_length: int | None) -> int | None:
    """Bytes by which one call raises the resident maximum of a fresh process; None where that cannot be read.

    The process is forked from a server that has imported torch and nothing else: the allocator has nothing to reuse.
    """
    if not provider.cpu_peak:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.memory", "bench.providers"])
    receive, send = context.Pipe(duplex=False)
    arguments = (provider.name, group, mean_length, torch.get_num_threads(), send)
    process = context.Process(target=_send_peak, args=arguments)
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:  # killed, for want of memory say
        return None
    finally:
        process.join()


def _send_peak(name: str, group: Group, mean_length: int | None, threads: int, pipe) -> None:
    from bench.providers import select

    torch.set_num_threads(threads)
    (provider,) = select([name], quick=False)
    tiny = make_problems(TINY, getattr(torch, group.dtype), "cpu")[0]
    provider.make(group.op, tiny)(tiny)  # loads the libraries' code, which is not the provider's memory
    problem = problems_of(group, mean_length=mean_length)[0]
    pipe.send(peak_of(lambda: provider.make(group.op, problem)(problem), torch.device("cpu")))


@contextlib.contextmanager
def poisoned(device: str) -> Iterator[None]:
    """New tensors hold NaN until something is written to them, so that an unwritten output shows.

    On CUDA the allocator's free memory is filled; on the CPU torch fills each empty tensor.
    """
    if device == "cuda":
        _fill_free_cuda_memory()
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # empty tensors are filled in this mode only
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _fill_free_cuda_memory() -> None:
    free, _ = torch.cuda.mem_get_info()
    sizes = [min(free // 4, 2**33)] + [2**18] * 256  # large tensors come from one pool, small ones from another
    blocks = [torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in sizes]  # NaN in every float type
    torch.cuda.synchronize()
    del blocks
