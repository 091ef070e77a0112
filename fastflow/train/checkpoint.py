"""One save of a run: everything from which it goes on as if it had never stopped.

    policy/                     loads with AutoModelForCausalLM.from_pretrained (LoRA is merged; adapters stand apart)
    adapter/                    the LoRA adapters alone, when there are any: all that was learned, unrounded
    trainer/tensors/            optimiser moments and log_z, by name, and the weights that policy/ and adapter/ round
    trainer/generators/rank-0   the random states of each rank
    trainer/rollout/            responses that are begun, where they could not be sampled again
    trainer/state.json, config.yaml
    manifest.json               size and SHA-256 of every file, written last

Everything is safetensors, JSON or YAML; nothing is pickled. What policy/ and adapter/ hold to the bit is not stored a
second time. `stage` copies the trained state to the host, in an instant; `write` needs the copy only, and can run
beside the training.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastflow.config.reader import to_yaml
from fastflow.config.schema import Config
from fastflow.errors import FastflowError
from fastflow.models.parallel import copy_whole, whole, whole_on_cpu
from fastflow.run.durable import flush
from fastflow.run.manifest import Manifest, write_manifest
from fastflow.train.export import Exporter, ExportReport, on_cpu
from fastflow.train.learner import Learner
from fastflow.train.state import GROUPS_FILE, Identity, Position, scalars_of, write_rollout
from fastflow.train.tensors import catalogue, read_tensors, same_bits, write_tensors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"


class SaveFailed(FastflowError):
    """A save came to nothing; the earlier ones are as they were."""


class Staged(NamedTuple):
    """Copies in the host's memory. weights: the trained parameters, by name. others: optimiser moments and log_z.

    without_moments: parameters that no gradient has reached yet.
    """

    model: PreTrainedModel | PeftModel
    weights: dict[str, torch.Tensor]
    others: dict[str, torch.Tensor]
    without_moments: list[str]
    is_peft: bool
    ranks: int = 1


@dataclass(frozen=True)
class Saved:
    """A save as it is read back. state: state.json."""

    directory: Path
    state: dict[str, Any]

    @property
    def rollout(self) -> Path:
        return self.directory / "trainer" / "rollout"

    @property
    def has_groups(self) -> bool:
        return (self.rollout / GROUPS_FILE).exists()


@torch.no_grad()
def stage(learner: Learner) -> Staged | None:
    """Copy the trained state to the host. Under several ranks, all gather one tensor after the other, and the first
    keeps them; the others return None.
    """
    policy = learner.policy
    model = on_cpu(policy.model) if policy.root is None else whole_on_cpu(policy)
    others = {}
    for name, tensor in _others(learner):
        gathered = whole(tensor)
        if policy.ranks.is_first:
            others[name] = gathered.to("cpu", copy=True)
    if model is None:
        return None
    trained = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if name in trained}
    without = [name for name, one in named_parameters(learner).items() if not learner.optimizer.state.get(one)]
    is_peft = policy.model is not policy.causal_lm
    return Staged(model, weights, others, without, is_peft, policy.ranks.count)


def write(
    directory: Path, staged: Staged, exporter: Exporter, position: Position, identity: Identity, config: Config
) -> tuple[Manifest, ExportReport]:
    """Write a save to an empty directory, and have the disk take it. Uses the staged copy up.

    Returns its manifest, and what became of the update in the exported policy. Raises SaveFailed for state that is not
    finite, else whatever keeps it from being written.
    """
    for name, tensor in {**staged.weights, **staged.others}.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SaveFailed(f"{name} is no longer finite and was not saved")
    if staged.is_peft:
        save_adapter(staged.model, directory / "adapter")
    report = exporter.write(staged.model, directory / "policy")
    trainer = directory / "trainer"
    trainer.mkdir()
    exact = set(_exactly_held(directory, staged.weights))
    rest = {f"weights/{name}": tensor for name, tensor in staged.weights.items() if name not in exact}
    write_tensors(trainer / "tensors", {**rest, **staged.others})
    _write_generators(trainer / "generators", position.generators, rank=0)
    write_rollout(trainer / "rollout", position)
    (trainer / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    state = {
        **_state(position, identity, report),
        "ranks": staged.ranks,
        "without_moments": staged.without_moments,
    }
    (trainer / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    manifest = write_manifest(directory, step=position.step, updates=position.updates, metric=position.metric)
    flush(directory)
    return manifest, report


def read(directory: Path) -> Saved:
    """The save in a directory that has proved itself."""
    return Saved(directory, json.loads((directory / "trainer" / "state.json").read_text(encoding="utf-8")))


@torch.no_grad()
def restore(saved: Saved, learner: Learner) -> None:
    """Give policy, log_z, optimiser and schedule the state of a save, to the bit.

    Raises FastflowError for a parameter of which weights or moments are missing, or of another shape or type.
    """
    parameters, updates = named_parameters(learner), int(saved.state["updates"])
    try:
        _restore_weights(saved.directory, learner)
        _restore_moments(saved, learner, parameters, updates)
    except KeyError as error:
        raise FastflowError(
            f"the save in {saved.directory} lacks {error.args[0]}, which this run trains; resume it with the settings "
            "that it was started with"
        ) from error
    except ValueError as error:
        raise FastflowError(f"the save in {saved.directory} does not fit this run: {error}") from error
    learner.policy.version = int(saved.state["version"])
    schedule = learner.schedule
    schedule.last_epoch, schedule._step_count = updates, updates + 1
    schedule._last_lr = [
        base * factor(updates) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, lr in zip(learner.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = lr


def read_generators(saved: Saved, *, rank: int = 0) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(saved.directory / "trainer" / "generators" / f"rank-{rank}.safetensors")


def named_parameters(learner: Learner) -> dict[str, torch.nn.Parameter]:
    """Every trained parameter by the name that its moments are saved under; never by its number.

    Raises FastflowError where the objective trains parameters that have no names.
    """
    found = {f"policy/{name}": one for name, one in learner.policy.model.named_parameters() if one.requires_grad}
    if (head := _log_z_head(learner)) is not None:
        found |= {f"log_z/{name}": one for name, one in head.named_parameters()}
    if len(found) < sum(len(group["params"]) for group in learner.optimizer.param_groups):
        raise FastflowError(
            f"the objective {type(learner.objective).__name__} trains parameters that cannot be saved by name; keep "
            "them in a torch.nn.Module, its attribute log_z_head"
        )
    return found


def save_adapter(model: torch.nn.Module, directory: Path) -> None:
    """Write the adapters of a peft model; their ends are never adapted, so that nobody has to look at the hub's."""
    model.save_pretrained(directory, save_embedding_layers=False)  # type: ignore[operator]
    for file in directory.rglob(ADAPTER_CONFIG):
        settings = json.loads(file.read_text(encoding="utf-8"))
        in_order = {
            name: sorted(value) if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else value
            for name, value in settings.items()  # peft's lists are sets, in the order of the day
        }
        file.write_text(json.dumps(in_order, indent=2, sort_keys=True), encoding="utf-8")


def reason(error: BaseException) -> str:
    """Why something could not be written, in one line and with a remedy where the disk is to blame."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, SaveFailed):
        return text
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return f"{text}; make room there (`df -h`, `ulimit -f`), or choose another --run.output"
    return f"{type(error).__name__}: {text}"


def discard(directory: Path) -> None:
    """Drop a save that is not complete."""
    shutil.rmtree(directory, ignore_errors=True)


def _log_z_head(learner: Learner) -> torch.nn.Module | None:
    """The network that an objective trains beside the policy, where it has one."""
    return getattr(learner.objective, "log_z_head", None)


def _others(learner: Learner) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in named_parameters(learner).items():
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            yield f"moments/{name}/{key}", value
    if (head := _log_z_head(learner)) is not None:
        for name, tensor in head.state_dict().items():
            yield f"log_z/{name}", tensor


def _exactly_held(directory: Path, weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Names of the weights that policy/ or adapter/ hold to the bit."""
    from safetensors import safe_open

    places = _places(directory)
    for name, tensor in weights.items():
        for candidate in _exported_names(name):
            if candidate in places:
                with safe_open(places[candidate], "pt") as file:
                    if same_bits(file.get_tensor(candidate), tensor):
                        yield name


def _places(directory: Path) -> dict[str, Path]:
    """The file of each tensor in policy/ and adapter/."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for file in (*directory.glob("policy/*.safetensors"), *directory.glob("adapter/*.safetensors")):
        with safe_open(file, "pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    return places


def _exported_names(name: str) -> set[str]:
    """What transformers and peft call a parameter in their files."""
    return {name, name.replace(".default.", ".")}


def _restore_weights(directory: Path, learner: Learner) -> None:
    from safetensors import safe_open

    tensors = directory / "trainer" / "tensors"
    stored, places = catalogue(tensors), _places(directory)
    targets: dict[str, torch.Tensor] = {}
    for name, parameter in learner.policy.model.named_parameters():
        if not parameter.requires_grad:
            continue
        if f"weights/{name}" in stored:
            targets[f"weights/{name}"] = parameter.detach()
            continue
        held = [candidate for candidate in _exported_names(name) if candidate in places]
        if not held:
            raise KeyError(f"the weights of {name}")
        with safe_open(places[held[0]], "pt") as file:
            tensor = file.get_tensor(held[0])
        if (tensor.dtype, tensor.shape) != (parameter.dtype, parameter.shape):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {parameter.dtype} here")
        copy_whole(parameter, tensor)
    if (head := _log_z_head(learner)) is not None:
        targets |= {f"log_z/{name}": one for name, one in head.state_dict().items()}
    read_tensors(tensors, targets)


def _restore_moments(
    saved: Saved, learner: Learner, parameters: Mapping[str, torch.nn.Parameter], updates: int
) -> None:
    directory = saved.directory / "trainer" / "tensors"
    stored = catalogue(directory)
    untouched = set(saved.state["without_moments"])
    state: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    targets: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        if name in untouched:
            continue
        fresh = {
            "step": torch.zeros((), device=parameter.device),
            **{key: torch.empty_like(parameter) for key in ("exp_avg", "exp_avg_sq")},
        }
        state[parameter] = fresh
        targets |= {f"moments/{name}/{key}": tensor for key, tensor in fresh.items()}
    unknown = {name for name in stored if name.startswith("moments/")} - targets.keys()
    if unknown:
        raise ValueError(f"it has {min(unknown)}, which this run does not train")
    read_tensors(directory, targets)
    counts = [float(entry["step"]) for entry in state.values()]
    if counts and not (max(counts) == updates and min(counts) >= 1):
        raise ValueError(f"its optimiser counts {max(counts):g} updates and its state {updates}")
    learner.optimizer.state.clear()
    learner.optimizer.state.update(state)


def _write_generators(directory: Path, states: Mapping[str, torch.Tensor], *, rank: int) -> None:
    from safetensors.torch import save_file

    directory.mkdir()
    save_file(dict(states), directory / f"rank-{rank}.safetensors")


def _state(position: Position, identity: Identity, report: ExportReport) -> dict[str, Any]:
    under_way = position.under_way
    return {
        "step": position.step,
        "updates": position.updates,
        "version": position.version,
        "prompts": dict(position.prompts),
        "records": dict(position.records),
        "alarms": dict(position.alarms),
        "export": dataclasses.asdict(report),
        "under_way": None
        if under_way is None
        else {"version": under_way.version, "results": [scalars_of(result) for result in under_way.results]},
        "identity": dataclasses.asdict(identity),
    }
