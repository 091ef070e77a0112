"""Estimate the memory of a configuration, row by row, and judge whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from fastflow.config.methods import OFFLINE
from fastflow.config.schema import Config
from fastflow.counted import sized
from fastflow.models.vocabulary import check_same_vocabulary
from fastflow.plan.device import Device
from fastflow.plan.head_rows import head_remarks
from fastflow.plan.lengths import samplings
from fastflow.plan.rank_rows import divide_rows, loading_obstacle
from fastflow.plan.rows import PHASES, Row, peak
from fastflow.plan.sizes import Adapters, ModelSizes, count_adapters, read_sizes
from fastflow.plan.trainer_rows import trainer_rows
from fastflow.plan.vllm_rows import shared_bytes, vllm_rows

TIGHT = 0.9  # share of the memory; the allocator's fragments are not counted


@dataclass(frozen=True)
class MemoryEstimate:
    """The rows of a plan. obstacles: what stops the run even where the bytes fit. remarks: what to know besides."""

    device: Device
    rows: list[Row]
    remarks: list[str]
    obstacles: list[str]

    def peak(self, phase: str) -> tuple[str, int]:
        """Return the moment of this phase with most memory, and its bytes."""
        return peak(self.rows, phase)

    def excess(self, phase: str) -> int:
        """Return the bytes of this phase's peak that the device lacks; 0 when it fits."""
        return max(self.peak(phase)[1] - self.device.memory, 0)

    @property
    def shortfall(self) -> int:
        return max(self.excess(phase) for phase in PHASES)

    @property
    def fits(self) -> bool:
        return not self.shortfall and not self.obstacles


@dataclass(frozen=True)
class Sizes:
    """Of the policy; of its base, where that is another model; and of its adapters, where it has any."""

    model: ModelSizes
    base: ModelSizes | None
    adapters: Adapters | None


def estimate(config: Config, device: Device) -> MemoryEstimate:
    """Estimate the memory of a run. Raises FastflowError for an unreadable config.json and for unsuitable settings."""
    return estimate_sizes(config, sizes_of(config), device)


def sizes_of(config: Config) -> Sizes:
    """Read the sizes of all models of a run. Raises FastflowError as `estimate` does."""
    model = read_sizes(config.model.path, config.model)
    base, adapters = None, None
    if config.lora.rank:
        adapters = count_adapters(config.model.path, config.model, config.lora)
    elif config.reads_base:
        base = read_sizes(config.model.base or config.model.path, config.model)
        check_same_vocabulary(model, base, config.model)
    return Sizes(model, base, adapters)


def estimate_sizes(config: Config, sizes: Sizes, device: Device) -> MemoryEstimate:
    """Estimate the memory of a run on models of these sizes."""
    model, adapters = sizes.model, sizes.adapters
    rows = trainer_rows(config, model, sizes.base, adapters, device)
    remarks, obstacles = loading_obstacle(rows, config, device)
    of_head = head_remarks(config, model, sizes.base, device)
    remarks, obstacles = [*remarks, *of_head[0]], [*obstacles, *of_head[1]]
    rows = divide_rows(rows, config, model, device)
    if config.rollout.engine == "vllm":
        more, its_remarks, its_obstacles = vllm_rows(config, model, adapters, device)
        rows, remarks, obstacles = [*rows, *more], [*remarks, *its_remarks], [*obstacles, *its_obstacles]
    elif config.rollout.engine == "vllm-server":
        remarks += ["the servers' memory is their own; only the trainer's is counted here"]
    if config.objective.name in OFFLINE:
        remarks += [f"objective.name = {config.objective.name} samples nothing and reads no base: neither is counted"]
    elif not config.reads_base:
        remarks += ["surrogate.score_base = false loads no base: none is counted"]
    result = MemoryEstimate(device, rows, remarks, obstacles)
    _judge_lengths(result, config, model)
    _judge(result, config, shared_bytes(config, model, adapters, device.count))
    return result


def _judge_lengths(result: MemoryEstimate, config: Config, model: ModelSizes) -> None:
    """Compare the longest prompt and response with the model's context, and those of an evaluation too."""
    told: set[str] = set()
    for sampled in samplings(config):
        setting, limit = sampled.setting, sampled.limit
        if model.context is None or sampled.length <= model.context or setting in told:
            continue
        told.add(setting)
        if limit + 1 > model.context:
            result.obstacles.append(
                f"{setting} = {limit:,} leaves no room for a prompt in the model's context of {model.context:,} "
                "tokens; lower it"
            )
        else:
            result.remarks.append(
                f"the model's context is {model.context:,} tokens; with {setting} = {limit:,}, a prompt of more than "
                f"{model.context - limit:,} tokens ends the run"
            )


def _judge(result: MemoryEstimate, config: Config, shared: int) -> None:
    """Add what the sum alone does not show. shared: bytes that vLLM on a CPU needs in shared memory."""
    device = result.device
    largest = max(result.peak(phase)[1] for phase in PHASES)
    if TIGHT * device.memory < largest <= device.memory:
        result.remarks.append("less than a tenth of the memory is left, which fragments of the allocator may take")
    if device.is_gpu:
        return
    result.remarks.append(
        "malloc's fragments are not counted, and took up to as much again in a CPU run; MALLOC_MMAP_THRESHOLD_=65536 "
        "in the environment avoids them"
    )
    if config.rollout.engine != "vllm":
        return
    result.remarks.append("trainer and vLLM share this machine's memory; vLLM keeps its own while the policy trains")
    if device.shared is None:
        result.remarks.append(f"shared memory (/dev/shm) must hold {sized(shared)}")
    elif device.shared < shared:
        result.obstacles.append(
            f"shared memory (/dev/shm) has {sized(device.shared)} free, but must hold {sized(shared)}; in Docker, "
            "start the container with --shm-size or --ipc=host"
        )
