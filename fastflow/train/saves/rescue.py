"""What a run that has to stop has reached: saved, and where that is said.

Where a save fails, the last resort is what was learned as plain tensors, wherever there is room for them.
"""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from fastflow import interrupt
from fastflow.interrupt import deferred_interrupt
from fastflow.models.cut.parallel import part
from fastflow.models.packed import PackedModel
from fastflow.run.directory import RESCUED
from fastflow.train.learner import Learner
from fastflow.train.saves.checkpoint import SaveFailed, reason
from fastflow.train.saves.saver import WORK, Saver
from fastflow.train.state import Position

FILE_BYTES = 2**30


def rescue(saver: Saver, learner: Learner, position: Position, directory: Path, stop: BaseException) -> str:
    """Save what a stopped run has reached, and say where it is. Raises nothing: what it cannot save, it says.

    position: after the learner's last update.
    """
    try:
        with deferred_interrupt(work=WORK, deliver=False):
            return _rescue(saver, learner, position, directory, stop)
    except KeyboardInterrupt:
        saver.give_up()
        return f"the save was given up; {saver.last()}"


def _rescue(saver: Saver, learner: Learner, position: Position, directory: Path, stop: BaseException) -> str:
    traceback.clear_frames(stop.__traceback__)  # they hold the activations of the step that failed
    learner.free_gradients()
    if isinstance(stop, interrupt.GivenUp):
        saver.give_up()
        return f"the save was given up; {saver.last()}"
    try:
        saver.wait()
        finite = all(bool(part(parameter).isfinite().all()) for parameter in learner.policy.parameters())
        if learner.policy.ranks.any(not finite):
            problem = "the policy's weights are no longer finite and were not saved over an earlier save"
            return f"{problem}; {saver.last()}"
        if isinstance(stop, SaveFailed):
            return f"{write_raw(saver, learner.policy, directory)}; {saver.last()}"
        if not saver.is_saved(position):
            saver.save(position)
            saver.wait()
    except SaveFailed as failure:
        return f"{failure}; {write_raw(saver, learner.policy, directory)}; {saver.last()}"
    return saver.last()


def write_raw(saver: Saver, policy: PackedModel, directory: Path) -> str:
    """Write the trained weights to RUN/rescued, otherwise to a new temporary directory. Returns what it did, as text.

    Where they are cut over ranks, these are the weights of the save that failed, which the first rank has whole.
    """
    weights: Mapping[str, torch.Tensor] = {
        name: one for name, one in policy.model.named_parameters() if one.requires_grad
    }
    if policy.ranks.count > 1:
        weights = saver.unsaved
        if not weights:
            return "the trained weights are cut over the ranks and were not written anywhere else"
    reasons = []
    for make in (_in_the_run, _elsewhere):
        try:
            target = make(directory)
        except OSError as error:
            reasons.append(reason(error))
            continue
        try:
            _write(weights, target)
        except Exception as error:
            shutil.rmtree(target, ignore_errors=True)
            reasons.append(reason(error))
            continue
        what = "LoRA adapters" if policy.model is not policy.causal_lm else "weights"
        return (
            f"the current trained {what} are in {target} as raw safetensors, under the names of the model's "
            "named_parameters()"
        )
    return f"the trained weights could not be written anywhere else ({reasons[-1]})"


def _in_the_run(directory: Path) -> Path:
    target = directory / RESCUED
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return target


def _elsewhere(directory: Path) -> Path:
    """A new directory: one of this name may be all that another run has left."""
    return Path(tempfile.mkdtemp(prefix=f"fastflow-{RESCUED}-{directory.resolve().name}-"))


def _write(weights: Mapping[str, torch.Tensor], target: Path) -> None:
    from safetensors.torch import save_file

    for number, bucket in enumerate(_buckets(weights), start=1):
        save_file(bucket, target / f"weights-{number:05d}.safetensors", metadata={"format": "pt"})


def _buckets(weights: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the trained weights on the CPU, at most FILE_BYTES at a time; a larger one comes alone."""
    bucket: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if bucket and sum(tensor.nbytes for tensor in bucket.values()) + weight.nbytes > FILE_BYTES:
            yield bucket
            bucket = {}
        bucket[name] = weight.detach().to("cpu", copy=True).contiguous()
    if bucket:
        yield bucket
