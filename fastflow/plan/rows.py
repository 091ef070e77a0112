"""The rows of a plan: pieces of memory, each with the moments of a step at which it exists."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

SAMPLING = "sampling"
FORWARD = "the end of a forward pass"
LOSS = "the fused loss"
BACKWARD = "the start of a backward pass"
EMBEDDING = "the end of a backward pass"
STEP = "the optimiser's step"

PHASES = {"sampling": (SAMPLING,), "training": (FORWARD, LOSS, BACKWARD, EMBEDDING, STEP)}
TRAINING = PHASES["training"]
ALWAYS = (SAMPLING, *TRAINING)


class Part(enum.Enum):
    """What a row is a part of, where several ranks do not hold it as one does."""

    WEIGHTS = enum.auto()
    TRAINED = enum.auto()  # gradients and moments
    COPIES = enum.auto()  # what FSDP makes in another way: weights in bfloat16, the gradient of a layer's experts
    HIDDEN_STATES = enum.auto()  # those that reach the loss, and their gradient
    HEAD = enum.auto()  # what has the vocabulary's size in the loss
    EMBEDDING = enum.auto()  # its gradient
    SAMPLED_LOGITS = enum.auto()


@dataclass(frozen=True)
class Row:
    """One piece of memory.

    side: trainer, vllm, or host (in the RAM beside a GPU). how: the formula in words. part: None where each of several
    ranks holds what one does.
    """

    name: str
    side: str
    bytes: int
    how: str
    moments: tuple[str, ...] = ALWAYS
    part: Part | None = None


def of_part(part: Part, rows: list[Row]) -> list[Row]:
    return [replace(row, part=part) for row in rows]


def peak(rows: list[Row], phase: str) -> tuple[str, int]:
    """Return the moment of a phase with most memory on the device, and its bytes. Rows of the host do not count."""
    on_device = [row for row in rows if row.side != "host"]
    held = {moment: sum(row.bytes for row in on_device if moment in row.moments) for moment in PHASES[phase]}
    moment = max(held, key=held.__getitem__)
    return moment, held[moment]
