"""Find settings that would make a run fit, by estimating it again with each change."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastflow.config.contradictions import needs_base
from fastflow.config.methods import OFFLINE
from fastflow.config.schema import Config
from fastflow.models.cut.head import CUT
from fastflow.models.layers.residual_stream import BFLOAT16
from fastflow.plan.device import Device
from fastflow.plan.estimate import MemoryEstimate, estimate
from fastflow.plan.lengths import longest_sequence, sequences_at_once
from fastflow.plan.rows import PHASES

LORA_RANK = 16
FEWEST_SEQUENCES = 8
SHARES = (0.25, 0.5, 0.75, 1.0)
FRACTIONS = tuple(round(0.05 * step, 2) for step in range(19, 0, -1))


@dataclass(frozen=True)
class Remedy:
    """A setting to change. saves: bytes of each phase's peak; in a combination, beyond those of the remedies before."""

    setting: str
    value: Any
    saves: dict[str, int]
    fits: bool

    @property
    def option(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"--{self.setting} {value}"


def remedies(config: Config, device: Device, before: MemoryEstimate) -> list[Remedy]:
    """Return the changes that reduce the shortfall: first those that end it, then by what they save."""
    found = [_tried(config, device, before, *change) for change in _changes(config, device)]
    helpful = [(remedy, after) for remedy, after in found if _is_better(after, before)]
    helpful.sort(key=lambda pair: (not pair[0].fits, _distance(pair[1])))
    return [remedy for remedy, _ in helpful]


def combination(config: Config, device: Device, before: MemoryEstimate) -> list[Remedy]:
    """Add the most effective remedy, then the next, until the run fits or no other remedy helps."""
    chosen: list[Remedy] = []
    while not before.fits:
        left = [
            remedy for remedy in remedies(config, device, before) if remedy.setting not in {r.setting for r in chosen}
        ]
        if not left:
            break
        chosen.append(left[0])
        config = changed(config, left[0].setting, left[0].value)
        before = estimate(config, device)
    return chosen


def changed(config: Config, setting: str, value: Any) -> Config:
    """Return the configuration with another value of one setting, named `section.setting`."""
    section, name = setting.split(".")
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def _changes(config: Config, device: Device) -> Iterator[tuple[str, list[Any]]]:
    """Yield settings with the values to try, mildest first."""
    batch, rollout = config.batch, config.rollout
    if config.run.replicas > 1:
        yield "run.replicas", [fewer for fewer in range(config.run.replicas - 1, 0, -1) if not device.count % fewer]
    yield "batch.tokens_per_microbatch", _halvings(batch.tokens_per_microbatch, longest_sequence(config))
    if config.model.checkpoint_share < 1:
        yield "model.checkpoint_share", [share for share in SHARES if share > config.model.checkpoint_share]
    if not config.model.autocast and config.model.dtype == "float32":
        yield "model.autocast", [True]
    narrows = config.model.residual_stream == BFLOAT16
    if config.model.autocast and config.model.dtype == "float32" and not narrows:
        yield "model.residual_stream", [BFLOAT16]
    if device.count > config.run.replicas and config.model.head != CUT:
        yield "model.head", [CUT]
    if not config.lora.rank and config.model.base is None and importlib.util.find_spec("peft"):
        yield "lora.rank", [LORA_RANK]
    if config.reads_base and not (config.lora.rank or needs_base(config.objective, config.surrogate)):
        yield "surrogate.score_base", [False]
    if config.lora.rank and config.model.dtype == "float32" and not narrows:
        yield "model.dtype", ["bfloat16"]
    if config.objective.name in OFFLINE:
        return
    yield "rollout.max_sequences", _halvings(sequences_at_once(config, device.count), FEWEST_SEQUENCES)
    if rollout.engine == "vllm":
        if device.is_gpu:
            yield "rollout.memory_fraction", [share for share in FRACTIONS if share != rollout.memory_fraction]
            if rollout.sleep == "off" and not rollout.ahead:
                yield "rollout.sleep", ["auto"]
        elif rollout.sleep not in ("auto", "off"):
            yield "rollout.sleep", ["auto"]
        if rollout.ahead:
            yield "rollout.ahead", [0]


def _halvings(start: int, least: int) -> list[int]:
    values = []
    while start > least:
        start = max(start // 2, least)
        values.append(start)
    return values


def _tried(
    config: Config, device: Device, before: MemoryEstimate, setting: str, values: list[Any]
) -> tuple[Remedy, MemoryEstimate]:
    """Try the values in order. Returns the first that makes the run fit, otherwise the best."""
    after, value = before, None
    for candidate in values:
        tried = estimate(changed(config, setting, candidate), device)
        if value is None or tried.fits or _is_better(tried, after):
            after, value = tried, candidate
        if tried.fits:
            break
    saves = {phase: before.peak(phase)[1] - after.peak(phase)[1] for phase in PHASES}
    return Remedy(setting, value, saves, after.fits), after


def _is_better(after: MemoryEstimate, before: MemoryEstimate) -> bool:
    return _distance(after) < _distance(before)


def _distance(result: MemoryEstimate) -> tuple[int, int]:
    """Return how far a run is from fitting: obstacles count first, then the excess bytes of both phases."""
    return len(result.obstacles), sum(result.excess(phase) for phase in PHASES)
