"""Contestants one after another: each loads its models, warms up, and is timed as often as the time allows."""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from bench.peak import peak_bytes, reset_peak
from bench.providers.provider import Unavailable, is_installed
from bench.providers.trl import chunked_logprob
from bench.rows import failure
from bench.steps.clock import PHASES, PhaseClock
from bench.steps.packed import PackedContestant
from bench.steps.padded import PaddedContestant
from bench.steps.settings import Contestant, Outcome, StepSettings
from bench.steps.trl import trl_head
from bench.timing import summarise
from fastflow.data.trajectory import Group

OURS = "fastflow"
LOGIT_SHARE = 0.5  # of the device's memory, for the logits of one padded batch
CPU_LOGIT_BYTES = 2**31
# Relative differences of loss and gradient norm from ours. In bfloat16 the others round their logits.
TOLERANCE = {"float32": 1e-3, "mixed": 0.1, "bfloat16": 0.2}


@dataclass(frozen=True)
class Entry:
    """A contestant's name and how it is made; `make` raises Unavailable where it cannot run."""

    name: str
    make: Callable[[StepSettings], Contestant]


@dataclass
class Contest:
    """Rules of one measurement. deadline: time.monotonic() after which no contestant is started."""

    settings: StepSettings
    groups: Sequence[Group]
    repeats: int
    deadline: float
    rows: list[dict] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def run(self, entries: Sequence[Entry]) -> None:
        for place, entry in enumerate(entries):
            share = (self.deadline - time.monotonic()) / (len(entries) - place)
            with _layers_put_back():
                self.rows.append(self._row(entry, time.monotonic() + share))
            gc.collect()
            if self.settings.device.type == "cuda":
                torch.cuda.empty_cache()

    def _row(self, entry: Entry, until: float) -> dict:
        row = new_row(entry.name)
        if entry.name != OURS and time.monotonic() + self._least_seconds() > self.deadline:
            return row | {"status": "skipped: out of time"}
        try:
            began = time.monotonic()
            contestant = entry.make(self.settings)
            row |= {"note": contestant.note, "load_s": time.monotonic() - began}
            self._measure(entry.name, contestant, row, until)
        except Unavailable as reason:
            row["status"] = f"skipped: {reason}"
        except torch.OutOfMemoryError:
            row["status"] = "failed: out of memory"
        except Exception as error:
            row["status"] = failure(error)
        else:
            row["status"] = "ok"
        return row

    def _least_seconds(self) -> float:
        """What the next contestant needs at least, were it as fast as ours."""
        ours = next((row for row in self.rows if row["contestant"] == OURS and row["median_s"]), None)
        return ours["load_s"] + 2 * ours["median_s"] if ours else 0.0

    def _measure(self, name: str, contestant: Contestant, row: dict, until: float) -> None:
        """On CUDA the first call counts only if there is time for no other; on the CPU a small one goes before."""
        on_cuda = self.settings.device.type == "cuda"
        first, phases = self._call(contestant, self.groups if on_cuda else self.groups[:1])
        row["first_call_s"] = sum(phases.values())
        calls: list[dict[str, float]] = []
        if on_cuda:
            self.outcomes[name] = first
            calls = [phases] if time.monotonic() + row["first_call_s"] > self.deadline else []
        elif name != OURS:
            self._check_time(phases, contestant.slots(self.groups) / first.slots)
        while not calls or (len(calls) < self.repeats and time.monotonic() + sum(calls[-1].values()) < until):
            outcome, phases = self._call(contestant, self.groups)
            self.outcomes.setdefault(name, outcome)
            calls.append(phases)
        enter_calls(row, calls)
        row |= self.outcomes[name]._asdict() | {"peak_bytes": peak_bytes(self.settings.device)}

    def _check_time(self, small: dict[str, float], times_larger: float) -> None:
        """Raise Unavailable where a whole update, judged by a small one, would end after the deadline."""
        fixed = small["optimiser"]
        needed, left = fixed + times_larger * (sum(small.values()) - fixed), self.deadline - time.monotonic()
        if needed > left:
            raise Unavailable(f"out of time: an update takes about {needed:.0f} s, {max(left, 0):.0f} s are left")

    def _call(self, contestant: Contestant, groups: Sequence[Group]) -> tuple[Outcome, dict[str, float]]:
        """One update; with smaller batches where it runs out of memory and can make them smaller."""
        clock = PhaseClock(self.settings.device)
        while True:
            try:
                reset_peak(self.settings.device)
                clock.start()
                outcome = contestant.update(groups, clock)
                return outcome, clock.stop()
            except torch.OutOfMemoryError:
                if not (isinstance(contestant, PaddedContestant) and contestant.halve_batches()):
                    raise
            contestant.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()

    def judge(self) -> list[str]:
        """Note in each row whether its loss and gradient agree with ours; what is wrong, in words."""
        ours = next((row for row in self.rows if row["contestant"] == OURS), None)
        if ours is None:
            return []
        if ours["status"] != "ok":
            return [f"{OURS}: {ours['status']}"]
        tolerance = TOLERANCE[self.settings.precision]
        wrong = []
        for row in (row for row in self.rows if row["status"] == "ok"):
            far = [name for name in ("loss", "grad_norm") if not math.isclose(row[name], ours[name], rel_tol=tolerance)]
            row["agrees"] = not far
            wrong += [f"{name} of {row['contestant']} is {row[name]:.6g}, ours {ours[name]:.6g}" for name in far]
        return wrong


@contextlib.contextmanager
def _layers_put_back() -> Iterator[None]:
    """What a contestant replaces in transformers' module of the family, fused layers say, ends with it."""
    from transformers.models.qwen2 import modeling_qwen2 as module

    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def new_row(name: str) -> dict:
    """Nothing measured yet. Seconds and bytes; phases_s: median seconds of each phase of clock.py."""
    return {
        "contestant": name,
        "status": "skipped: not reached",
        "median_s": None,
        "quartiles_s": None,
        "calls": 0,
        "load_s": None,
        "first_call_s": None,
        "phases_s": None,
        "peak_bytes": None,
        "loss": None,
        "grad_norm": None,
        "slots": None,
        "microbatches": None,
        "agrees": None,
        "note": "",
    }


def enter_calls(row: dict, calls: Sequence[dict[str, float]]) -> None:
    summary = summarise([sum(phases.values()) for phases in calls])
    row |= {
        "median_s": summary.median,
        "quartiles_s": [summary.low, summary.high],
        "calls": summary.count,
        "phases_s": {phase: statistics.median(phases[phase] for phases in calls) for phase in PHASES},
    }


def _trl(settings: StepSettings) -> PaddedContestant:
    if not is_installed("trl"):
        raise Unavailable("trl is not installed")
    chunked_logprob()
    note = (
        "TRL's chunked log-probs and entropy over transformers' models, batches padded to the longest of all, as its "
        "GRPO trainer makes them; the same loss, whose cost is none."
    )
    return PaddedContestant(settings, note, trl_head)


def _padded(settings: StepSettings, *, by_length: bool) -> PaddedContestant:
    if settings.device.type == "cuda":
        logit_bytes = LOGIT_SHARE * torch.cuda.get_device_properties(settings.device).total_memory
    else:
        logit_bytes = CPU_LOGIT_BYTES
    how = "sorted by length and padded to the longest of each batch" if by_length else "padded to the longest of all"
    note = f"Plain transformers and PyTorch: all logits of a batch at once; batches {how}."
    return PaddedContestant(settings, note, logit_bytes=logit_bytes, by_length=by_length)


ENTRIES = (
    Entry(OURS, PackedContestant),
    Entry("trl", _trl),
    Entry("padded", lambda settings: _padded(settings, by_length=False)),
    Entry("padded_by_length", lambda settings: _padded(settings, by_length=True)),
)
