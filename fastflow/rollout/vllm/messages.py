"""The messages between the trainer and the vLLM process, over their pipe: one class for each command and each reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from fastflow.rollout.sampler import SamplingParams

Activity = Literal["starting", "loading", "probing", "sampling", "sleeping", "waking"]
SleepLevel = Literal[1, 2]
MemoryTag = Literal["weights", "kv_cache"]


@dataclass(frozen=True)
class EngineSettings:
    """What the child needs to build its engine.

    model: a directory with a config.json and no weights. tokenizer: whether it has a tokenizer too, for stop texts.
    sleeps: whether the engine must be able to give its memory back. threads: on a CPU. lora_rank: rank of the adapters
    that the engine applies itself; 0 where it gets merged weights. lora_targets: last parts of the names of adapted
    layers. carries_state, has_experts: whether the model has linear attention, and whether it is a mixture. gpu: what
    CUDA_VISIBLE_DEVICES is to be; None leaves it.
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
    carries_state: bool = False
    has_experts: bool = False
    gpu: str | None = None


@dataclass(frozen=True)
class Place:
    """The place of a weight in one of the shared blocks of memory."""

    name: str
    block: int
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class Attach:
    """Sent once: the memory that both processes see, and the places in it of each round's weights. No reply."""

    blocks: tuple[torch.Tensor, ...]
    rounds: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True)
class Load:
    """Load the weights of this round, which the shared memory holds now. Reply: Done."""

    round: int


@dataclass(frozen=True)
class Adopt:
    """Apply the adapters in this directory from now on, in place of the earlier ones. Reply: Done."""

    directory: str


@dataclass(frozen=True)
class Commit:
    """Check after the last round that no weight is missing, and forget what the old weights computed. Reply: Done.

    is_partial: the weights that do not change were not loaded again.
    """

    is_partial: bool = False


@dataclass(frozen=True)
class Probe:
    """Compute the log-probs of these tokens. Reply: Probed."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """Sample one response for each (owner, seed). Reply: Sampled.

    owner: (n,) the place of the response's prompt in `prompts`. seed: (n,) int64. probe: see Probe; its log-probs come
    with the responses and prove which weights sampled them. limits: the length limit of each prompt's responses.
    """

    prompts: tuple[np.ndarray, ...]
    owner: np.ndarray
    seed: np.ndarray
    params: SamplingParams
    end_ids: tuple[int, ...]
    probe: tuple[int, ...]
    limits: tuple[int, ...]


@dataclass(frozen=True)
class Sleep:
    """Free the cache, and move the weights to the CPU (level 1) or drop them (level 2). Reply: Done."""

    level: SleepLevel


@dataclass(frozen=True)
class Wake:
    """Allocate the memory of the weights or of the cache again. Reply: Done."""

    tag: MemoryTag


@dataclass(frozen=True)
class Close:
    """End. No reply."""


@dataclass(frozen=True)
class Ready:
    """The engine is built."""


@dataclass(frozen=True)
class Done:
    """The command was carried out."""


@dataclass(frozen=True)
class Probed:
    """Log-probs (P - 1,) of the probe's tokens after the first."""

    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Sampled:
    """Responses in the order of the request: ids and logprobs of all tokens, joined.

    length: (n,) tokens of each response. stopped: (n,) whether it ended before the length limit. probe_logprobs: see
    Probed.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    length: np.ndarray
    stopped: np.ndarray
    probe_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Failed:
    """The command failed. while_: what the process was doing. out_of_memory: whether it lacked memory."""

    while_: Activity
    reason: str
    out_of_memory: bool = False


Command = Load | Adopt | Commit | Probe | Sample | Sleep | Wake  # each has a reply
Reply = Ready | Done | Probed | Sampled
