"""Write the policy as directories of safetensors files that servers read: one for each version, visible when complete.

    FOLDER/fastflow-weights-x1y2/version-3/config.json, model.safetensors         up to BUCKET_BYTES, otherwise
                                           model-00001-of-00002.safetensors, ..., model.safetensors.index.json

Each is a checkpoint that transformers and vLLM load. Adapters are merged, and tied weights are written once.
"""

from __future__ import annotations

import atexit
import copy
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from fastflow.errors import FastflowError
from fastflow.models.cut.parallel import whole
from fastflow.models.layers.linear_attention import DECAY
from fastflow.models.packed import PackedModel
from fastflow.models.weights.expert_names import Part, parts_of
from fastflow.models.weights.merging import AdaptedLayer, MergeWatch, RoundingLoss, adapted_layers, weight_update

BUCKET_BYTES = 2**30
Bucket = dict[str, list[Part]]  # of one file: names in the policy, and what the checkpoint holds for them


class WeightFolder:
    """Writes versions of the weights, and deletes those that no server reads any more.

    folder: a directory that all servers see under the same path, in which this makes a directory of its own; None is
    the system's directory for temporary files.
    """

    def __init__(self, folder: str | None):
        self._watch = MergeWatch("sample with --rollout.engine vllm, which applies adapters unmerged")
        try:
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix="fastflow-weights-", dir=folder))
            self.path = made.absolute()  # unresolved: servers may see the folder through its links only
            self.path.chmod(0o755)  # a server may run as another user
        except OSError as error:
            raise FastflowError(f"cannot write to rollout.shared_folder = {folder}: {error}; choose another") from error
        self._written = 0
        atexit.register(self.close)

    def write(self, policy: PackedModel) -> Path:
        """Write the next version. Returns its directory. Raises FastflowError when it cannot be written. Under several
        ranks a collective, for which the others call help_to_write.
        """
        target = self.path / f"version-{self._written}"
        unfinished = self.path / f"{target.name}.unfinished"
        try:
            loss = write_checkpoint(policy, unfinished)
            unfinished.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise FastflowError(
                f"cannot write the weights to {self.path}: {error}; set rollout.shared_folder to a directory with room "
                "for two copies of the model"
            ) from error
        self._written += 1
        self._watch.judge(loss, policy.dtype)
        return target

    def keep_only(self, directory: Path) -> None:
        """Delete the other versions."""
        for other in self.path.iterdir():
            if other != directory:
                shutil.rmtree(other, ignore_errors=True)

    def close(self) -> None:
        """Delete all that was written. The end of the program does so too."""
        atexit.unregister(self.close)
        shutil.rmtree(self.path, ignore_errors=True)


def help_to_write(policy: PackedModel) -> None:
    """Take part in the collectives of WeightFolder.write, on a rank that writes nothing."""
    dtype, layers = _dtype_of(policy), dict(adapted_layers(policy.causal_lm))
    for bucket in _buckets(policy, dtype):
        for source in bucket:
            _merged(policy, layers, source, dtype, RoundingLoss())


def write_checkpoint(policy: PackedModel, directory: Path) -> RoundingLoss:
    """Write config and weights, one file at a time through the CPU's memory. Under autocast the weights are bfloat16.

    Returns what the rounding of merged adapters costs. A failure is raised when all is gathered, so that no other rank
    waits.
    """
    dtype = _dtype_of(policy)
    buckets, layers = _buckets(policy, dtype), dict(adapted_layers(policy.causal_lm))
    failures: list[Exception] = []

    def attempt(act: Callable[[], object]) -> None:
        if not failures:
            try:
                act()
            except (OSError, SafetensorError) as error:
                failures.append(error)

    names = _name_files(buckets)
    attempt(lambda: _write_descriptions(policy, dtype, directory, names, buckets))
    loss = RoundingLoss()
    for name, bucket in zip(names, buckets, strict=True):
        tensors: dict[str, torch.Tensor] = {}
        for source, parts in bucket.items():
            merged = _merged(policy, layers, source, dtype, loss).cpu()
            tensors |= {part.name: part.of(merged) for part in parts}
        attempt(functools.partial(_save, tensors, directory / name))
    if failures:
        raise failures[0]
    return loss


def _dtype_of(policy: PackedModel) -> torch.dtype | None:
    """Return the type of the written weights; None is the one that each has."""
    return torch.bfloat16 if policy.autocast else None


def _name_files(buckets: list[Bucket]) -> list[str]:
    if len(buckets) == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{len(buckets):05d}.safetensors" for number in range(1, len(buckets) + 1)]


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({weight: tensor.contiguous() for weight, tensor in tensors.items()}, file, metadata={"format": "pt"})
    shutil.copymode(file.with_name("config.json"), file)  # as the umask says: safetensors keeps a file to its user


def _write_descriptions(
    policy: PackedModel, dtype: torch.dtype | None, directory: Path, names: list[str], buckets: list[Bucket]
) -> None:
    """Write config.json, and which file holds which weight where there are several."""
    directory.mkdir()
    if len(names) > 1:
        places = {
            part.name: name
            for name, bucket in zip(names, buckets, strict=True)
            for parts in bucket.values()
            for part in parts
        }
        index = {"metadata": {}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    _write_config(policy, dtype, directory)


def _write_config(policy: PackedModel, dtype: torch.dtype | None, directory: Path) -> None:
    config = copy.deepcopy(policy.causal_lm.config)
    config._attn_implementation = "sdpa"  # readers do not have fastflow_packed
    config.architectures = [type(policy.causal_lm).__name__]
    config.dtype = dtype or next(policy.causal_lm.parameters()).dtype
    config.save_pretrained(directory)


def _buckets(policy: PackedModel, dtype: torch.dtype | None) -> list[Bucket]:
    """Return what each file holds. A file has BUCKET_BYTES at most, or one tensor of the policy."""
    buckets: list[Bucket] = [{}]
    size = 0
    for source, parts, tensor in _weights(policy):
        bytes_here = tensor.numel() * (dtype or tensor.dtype).itemsize
        if buckets[-1] and size + bytes_here > BUCKET_BYTES:
            buckets.append({})
            size = 0
        buckets[-1][source] = parts
        size += bytes_here
    return buckets


def _weights(policy: PackedModel) -> Iterator[tuple[str, list[Part], torch.Tensor]]:
    """Yield (name in the policy, what the checkpoint holds for it, tensor), tied tensors once."""
    seen: set[int] = set()
    for name, tensor in policy.causal_lm.state_dict(keep_vars=True).items():
        if ".lora_" not in name and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, parts_of(policy.causal_lm.config, name.replace(".base_layer", ""), tensor.shape), tensor


@torch.no_grad()
def _merged(
    policy: PackedModel,
    layers: Mapping[str, AdaptedLayer],
    name: str,
    dtype: torch.dtype | None,
    loss: RoundingLoss,
) -> torch.Tensor:
    """Return a tensor with its adapter added in float32, rounded once to `dtype` (None: the type that it has). Under
    several ranks a collective.

    layers: those with adapters, by name.
    """
    module_name, _, attribute = name.rpartition(".")
    tensor = whole(getattr(policy.causal_lm.get_submodule(module_name), attribute))
    if name.endswith(DECAY):  # vLLM holds it in float32
        return tensor
    if not name.endswith(".base_layer.weight"):
        return tensor.to(dtype or tensor.dtype)
    layer = layers[module_name.removesuffix(".base_layer")]
    update = weight_update(layer, torch.float32)
    merged = (tensor + update).to(dtype or tensor.dtype)
    loss.add(tensor, update, merged)
    return merged
