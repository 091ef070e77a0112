"""The rows of a plan: pieces of memory, each with the moments of a step at which it exists."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLING = "sampling"
FORWARD = "the end of a forward pass"
LOSS = "the fused loss"
BACKWARD = "the start of a backward pass"
EMBEDDING = "the end of a backward pass"
STEP = "the optimiser's step"

PHASES = {"sampling": (SAMPLING,), "training": (FORWARD, LOSS, BACKWARD, EMBEDDING, STEP)}
TRAINING = PHASES["training"]
ALWAYS = (SAMPLING, *TRAINING)


@dataclass(frozen=True)
class Row:
    """One piece of memory. side: trainer, vllm, or host (in the RAM beside a GPU). how: the formula in words."""

    name: str
    side: str
    bytes: int
    how: str
    moments: tuple[str, ...] = ALWAYS


def peak(rows: list[Row], phase: str) -> tuple[str, int]:
    """Return the moment of a phase with most memory on the device, and its bytes. Rows of the host do not count."""
    on_device = [row for row in rows if row.side != "host"]
    held = {moment: sum(row.bytes for row in on_device if moment in row.moments) for moment in PHASES[phase]}
    moment = max(held, key=held.__getitem__)
    return moment, held[moment]
