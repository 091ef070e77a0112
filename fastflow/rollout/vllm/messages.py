"""What the trainer and the vLLM process say to each other over their pipe: one class a command, one a reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fastflow.rollout.sampler import SamplingParams


@dataclass(frozen=True)
class EngineSettings:
    """What the child needs to build its engine.

    model: a directory with a config.json and no weights. tokenizer: whether one stands there, for stop texts.
    sleeps: whether the engine must be able to give its memory back. threads: on a CPU. lora_rank: of adapters that the
    engine applies itself; 0 where it gets merged weights. lora_targets: last parts of the names of adapted layers.
    """

    model: str
    dtype: str
    context: int
    max_sequences: int
    device: str
    threads: int
    memory_fraction: float
    tokenizer: bool
    sleeps: bool
    log: str
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a weight stands in one of the shared blocks of memory."""

    name: str
    block: int
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class Attach:
    """Sent once: memory that both processes see, and what stands where in it in each round of a load."""

    blocks: tuple[torch.Tensor, ...]
    rounds: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True)
class Load:
    """Take the weights of this round, which the shared memory holds now. Reply: Done."""

    round: int


@dataclass(frozen=True)
class Adopt:
    """Apply the adapters in this directory from now on, in place of earlier ones. Reply: Done."""

    directory: str


@dataclass(frozen=True)
class Commit:
    """All rounds are over: check that nothing is missing, and forget what the old weights left. Reply: Done."""


@dataclass(frozen=True)
class Probe:
    """Reply: Probed."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One response for each (owner, seed): owner (n,) is the place of its prompt, seed (n,) int64. Reply: Sampled.

    probe: see Probe; it rides along, so that no response counts before the weights behind it have shown themselves.
    """

    prompts: tuple[np.ndarray, ...]
    owner: np.ndarray
    seed: np.ndarray
    params: SamplingParams
    end_ids: tuple[int, ...]
    probe: tuple[int, ...]


@dataclass(frozen=True)
class Sleep:
    """Give back the cache, and the weights to the CPU (level 1) or to nobody (level 2). Reply: Done."""

    level: Literal[1, 2]


@dataclass(frozen=True)
class Wake:
    """Take memory for the weights or for the cache again. Reply: Done."""

    tag: Literal["weights", "kv_cache"]


@dataclass(frozen=True)
class Close:
    """End. No reply."""


@dataclass(frozen=True)
class Ready:
    """The engine stands."""


@dataclass(frozen=True)
class Done:
    """Carried out."""


@dataclass(frozen=True)
class Probed:
    """Log-probs (P - 1,) of the probe's tokens after the first."""

    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Sampled:
    """Responses in the order of the request: ids and logprobs of all tokens, one after the other.

    length: (n,) tokens of each response. stopped: (n,) whether it ended by itself, not at the limit. probe_logprobs:
    see Probed.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    length: np.ndarray
    stopped: np.ndarray
    probe_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Failed:
    """A command that could not be carried out. while_: what was being done; out_of_memory: whether that was why."""

    while_: Literal["starting", "loading", "probing", "sampling", "sleeping", "waking"]
    reason: str
    out_of_memory: bool = False
