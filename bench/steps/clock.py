"""Where the time of an update goes: marks on the device's own time line, which nothing waits for."""

import time

import torch

PHASES = ("score", "forward", "loss", "backward", "optimiser", "rest")


class PhaseClock:
    """Exactly one phase runs from `start` to `stop`; a phase may be entered many times.

    On CUDA the marks are events, which the device reaches in the order of its work. On the CPU they are readings of
    the wall clock.
    """

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, object]] = []

    def start(self) -> None:
        """Begin an update, in the phase "score"."""
        self._marks = []
        if self._is_cuda:
            torch.cuda.synchronize()
        self.enter("score")

    def enter(self, phase: str) -> None:
        """End the running phase and begin this one."""
        self._marks.append((phase, self._now()))

    def stop(self) -> dict[str, float]:
        """Seconds of each phase since `start`."""
        self.enter("end")
        if self._is_cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds[phase] += begin.elapsed_time(end) / 1e3 if self._is_cuda else end - begin
        return seconds

    def _now(self):
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
