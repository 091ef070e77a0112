"""What the trainer and the vLLM process say to each other over their pipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastflow.rollout.sampler import SamplingParams


@dataclass(frozen=True)
class EngineSettings:
    """What the child needs to build its engine. model: a directory with a config.json and no weights."""

    model: str
    dtype: str
    context: int
    max_sequences: int
    device: str
    memory_fraction: float
    log: str


@dataclass(frozen=True)
class Place:
    """Where a weight stands in the shared memory of its type."""

    name: str
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class Share:
    """Sent once: memory that both processes see, and what stands where in it."""

    memory: torch.Tensor
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Load:
    """Take the weights that the shared memory holds now; then report the log-probs of the probe's tokens."""

    probe: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One response for each (prompt, seed)."""

    items: tuple[tuple[tuple[int, ...], int], ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Ready:
    """The engine stands."""


@dataclass(frozen=True)
class Loaded:
    """probe_logprobs: of the probe's tokens but the first."""

    probe_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Progress:
    """So many more responses are finished."""

    finished: int


@dataclass(frozen=True)
class Response:
    """One sampled response, as in a Trajectory."""

    ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str


@dataclass(frozen=True)
class Sampled:
    """In the order of Sample.items."""

    responses: tuple[Response, ...]


@dataclass(frozen=True)
class Failed:
    """What went wrong in the child, in one line."""

    reason: str
