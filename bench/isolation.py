"""Groups measured in a process of their own, which is replaced when a provider breaks it.

A kernel that reads a wrong address, hangs or kills its process must cost its own row and no other. The process
says which provider it runs next; when it is lost, that provider is left out and the group starts again. All
providers of a group are still timed in one process.
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from bench.shapes import Group

PATIENCE_S = 100.0  # without a word from the process: a hang. Longer than any provider compiles.


class Lost(NamedTuple):
    """The process is gone, and the provider that ran is to blame: for this group, or everywhere if it hung."""

    provider: str
    message: str
    everywhere: bool = False


def measure_here(groups: list[Group], names: list[str], settings) -> Iterator:
    """Results of the groups, one by one, measured in this process."""
    from bench.measure import measure_group
    from bench.providers import select

    for group in groups:
        yield measure_group(group, select(names, quick=False), settings)


def measure_apart(groups: list[Group], names: list[str], settings, patience: float = PATIENCE_S) -> Iterator:
    """The same from child processes, one after another."""
    waiting = list(groups)
    while waiting:
        for event in _child_events(waiting, names, settings, patience):
            if not isinstance(event, Lost):
                waiting.pop(0)
                yield event
            elif event.provider not in names:
                raise RuntimeError(f"{waiting[0]}: {event.provider} failed: {event.message}")
            else:
                print(f"{waiting[0]}: {event.provider}: {event.message}; starting again without it", flush=True)
                ban = {(event.provider, None if event.everywhere else waiting[0]): event.message}
                settings = dataclasses.replace(settings, banned=settings.banned | ban)


def _child_events(groups: list[Group], names: list[str], settings, patience: float) -> Iterator:
    """Results until the child is done, or at last a Lost."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    seconds_left = settings.deadline - time.monotonic()  # clocks of two processes need not agree
    child = context.Process(target=_child, args=(groups, names, settings, seconds_left, send))
    child.start()
    send.close()
    running, results = "the start of the measuring process", 0
    try:
        while results < len(groups):
            if not receive.poll(patience):
                yield Lost(running, f"no sign of life within {patience:.0f} s", everywhere=True)
                return
            try:
                event = receive.recv()
            except EOFError:
                child.join()
                yield Lost(running, f"its process ended with status {child.exitcode}")
                return
            if isinstance(event, str):
                running = event
                continue
            yield event
            if isinstance(event, Lost):
                return
            results += 1
        child.join(timeout=10)
    finally:
        if child.is_alive():
            child.kill()
        child.join()


def _child(groups: list[Group], names: list[str], settings, seconds_left: float, pipe) -> None:
    """Send the name of each provider before it runs, and the result of each group."""
    from bench.measure import DeviceLost, measure_group
    from bench.providers import select

    settings = dataclasses.replace(settings, deadline=time.monotonic() + seconds_left)
    providers = select(names, quick=False)
    for group in groups:
        try:
            pipe.send(measure_group(group, providers, settings, watch=pipe.send))
        except DeviceLost as lost:
            pipe.send(Lost(lost.provider, lost.message))
            pipe.close()
            os._exit(1)  # the device is gone: nothing is left to tidy up with
