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

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastflow.config.reader import to_yaml
from fastflow.config.schema import Config
from fastflow.errors import FastflowError, message_of
from fastflow.models.cut.parallel import whole
from fastflow.models.packed import PackedModel
from fastflow.models.pulse import PULSE
from fastflow.run.durable import flush
from fastflow.run.manifest import Manifest, write_manifest
from fastflow.train.learner import Learner
from fastflow.train.saves.export import Exporter, ExportReport
from fastflow.train.saves.saved_weights import SavedWeights
from fastflow.train.saves.tensors import same_bits, write_tensors
from fastflow.train.state import Identity, Position, scalars_of, write_rollout

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"


class SaveFailed(FastflowError):
    """A save came to nothing; the earlier ones are as they were."""


class Staged(NamedTuple):
    """Copies in the host's memory. weights, buffers: the policy's, by name, of the weights those that are trained.
    others: optimiser moments and log_z. without_moments: parameters that no gradient has reached yet. frozen: weights
    that are not trained, where they are cut over ranks. generators: the random states of each rank.
    """

    weights: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    others: dict[str, torch.Tensor]
    without_moments: list[str]
    frozen: Mapping[str, torch.Tensor]
    generators: Sequence[Mapping[str, torch.Tensor]]


class Skeleton:
    """The policy without trained weights of its own, made once: what a save needs of a model beside the copied tensors,
    so that training does not wait for more than these. Its frozen weights are the policy's own, which nobody changes:
    an engine may move them, and none is held twice.
    """

    def __init__(self, policy: PackedModel):
        own: dict[int, object] = {
            id(one): torch.nn.Parameter(torch.empty_like(one, device="meta")) if one.requires_grad else one
            for one in policy.model.parameters()
        }
        self._model = copy.deepcopy(policy.model, own) if policy.root is None else policy.root.skeleton[0]
        self.is_peft = policy.model is not policy.causal_lm

    def holding(self, staged: Staged) -> PreTrainedModel | PeftModel:
        """The staged model, on the host. The caller may take it apart, but not write into its tensors."""
        parts: dict[int, object] = {}
        for name, one in self._model.named_parameters():
            known = staged.weights if one.requires_grad else staged.frozen
            tensor = known[name] if name in known else one.detach().to("cpu")
            parts[id(one)] = torch.nn.Parameter(tensor, requires_grad=False)
        parts |= {id(one): staged.buffers[name] for name, one in self._model.named_buffers()}
        return copy.deepcopy(self._model, parts)


@torch.no_grad()
def stage(learner: Learner, generators: Mapping[str, torch.Tensor]) -> Staged | None:
    """Copy the trained state to the host. Where the policy is cut over ranks, all gather tensor after tensor. The
    first keeps them, and the others return None. generators: the random states of this rank.

    Raises SaveFailed, on all ranks, where the first has no memory for them.
    """
    policy, first = learner.policy, learner.policy.ranks.is_first
    named = list(policy.model.named_parameters())
    host = _Host(keeps=first)
    weights = host.copies((name, one) for name, one in named if one.requires_grad)
    frozen = host.copies((name, one) for name, one in named if policy.root is not None and not one.requires_grad)
    buffers, others = host.copies(policy.model.named_buffers()), host.copies(_others(learner))
    without = [name for name, one in named_parameters(learner).items() if not learner.optimizer.state.get(one)]
    states = policy.ranks.gather(generators)
    if told := policy.ranks.from_first(reason(host.failure) if host.failure else None):
        raise SaveFailed(told) from host.failure
    return Staged(weights, buffers, others, without, frozen, states) if first else None


def write(
    directory: Path,
    staged: Staged,
    skeleton: Skeleton,
    exporter: Exporter,
    position: Position,
    identity: Identity,
    config: Config,
) -> tuple[Manifest, ExportReport]:
    """Write a save to an empty directory, and have the disk take it.

    Returns its manifest, and what became of the update in the exported policy. Raises SaveFailed for state that is not
    finite, else whatever keeps it from being written.
    """
    for name, tensor in {**staged.weights, **staged.others}.items():
        PULSE.work()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SaveFailed(f"{name} is no longer finite and was not saved")
    model = skeleton.holding(staged)
    if skeleton.is_peft:
        save_adapter(model, directory / "adapter")
    report = exporter.write(model, directory / "policy")
    trainer = directory / "trainer"
    trainer.mkdir()
    exact = set(_exactly_held(directory, staged.weights, model.config))
    rest = {f"weights/{name}": tensor for name, tensor in staged.weights.items() if name not in exact}
    write_tensors(trainer / "tensors", {**rest, **staged.others})
    _write_generators(trainer / "generators", staged.generators)
    write_rollout(trainer / "rollout", position)
    (trainer / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    state = {
        **_state(position, identity, report),
        "ranks": len(staged.generators),
        "without_moments": staged.without_moments,
    }
    (trainer / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    manifest = write_manifest(directory, step=position.step, updates=position.updates, metric=position.metric)
    flush(directory)
    return manifest, report


def named_parameters(learner: Learner) -> dict[str, torch.nn.Parameter]:
    """Every trained parameter by the name that its moments are saved under; never by its number.

    Raises FastflowError where the objective trains parameters that have no names.
    """
    found = {f"policy/{name}": one for name, one in learner.policy.model.named_parameters() if one.requires_grad}
    if (head := learner.log_z_head) is not None:
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
    text = message_of(error)
    if isinstance(error, SaveFailed):
        return text
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return f"{text}; make room there (`df -h`, `ulimit -f`), or choose another --run.output"
    if "allocate memory" in text:
        return f"{text}; a save copies weights and moments to the host's memory: free some of it (`free -h`)"
    return message_of(error, typed=True)


def discard(directory: Path) -> None:
    """Drop a save that is not complete."""
    shutil.rmtree(directory, ignore_errors=True)


class _Host:
    """Copies whole tensors to this process's memory. keeps: False on a rank that only gives its parts of them.

    Where a copy fails, `failure` says why, and the rest is still gathered: the other ranks are at it.
    """

    def __init__(self, *, keeps: bool):
        self._keeps = keeps
        self.failure: Exception | None = None

    def copies(self, named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        for name, tensor in named:
            gathered = whole(tensor)
            if self._keeps and self.failure is None:
                try:
                    kept[name] = gathered.to("cpu", copy=True)
                except Exception as error:  # torch's for memory that is not there is a RuntimeError
                    self.failure = error
                    kept.clear()
        return kept


def _others(learner: Learner) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in named_parameters(learner).items():
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            yield f"moments/{name}/{key}", value
    if (head := learner.log_z_head) is not None:
        for name, tensor in head.state_dict().items():
            yield f"log_z/{name}", tensor


def _exactly_held(directory: Path, weights: Mapping[str, torch.Tensor], config: PretrainedConfig) -> Iterator[str]:
    """Names of the weights that policy/ or adapter/ hold to the bit."""
    with SavedWeights(directory, config) as saved:
        for name, tensor in weights.items():
            PULSE.work()
            parts = saved.find(name, tensor.shape)
            if parts and all(same_bits(saved.read(part), part.of(tensor)) for part in parts):
                yield name


def _write_generators(directory: Path, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
    from safetensors.torch import save_file

    directory.mkdir()
    for rank, of_rank in enumerate(states):
        save_file(dict(of_rank), directory / f"rank-{rank}.safetensors")


def _state(position: Position, identity: Identity, report: ExportReport) -> dict[str, Any]:
    under_way = position.under_way
    return {
        "step": position.step,
        "updates": position.updates,
        "version": position.version,
        "skips": position.skips._asdict(),
        "prompts": dict(position.prompts),
        "records": dict(position.records),
        "alarms": dict(position.alarms),
        "export": dataclasses.asdict(report),
        "under_way": None
        if under_way is None
        else {"version": under_way.version, "results": [scalars_of(result) for result in under_way.results]},
        "identity": dataclasses.asdict(identity),
    }
