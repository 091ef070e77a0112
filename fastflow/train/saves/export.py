"""Write the policy as an ordinary transformers directory, in the type that the settings ask for."""

from __future__ import annotations

import copy
import functools
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from fastflow.config.schema import Config
from fastflow.models.layers.experts import has_experts
from fastflow.models.layers.linear_attention import DECAY
from fastflow.models.packed import PackedModel, has_adapters
from fastflow.models.pulse import Beating
from fastflow.models.weights.merging import WORTH_A_WARNING, RoundingLoss, adapted_layers, merged_weight
from fastflow.train.saves.split_weights import write_split

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GENERATION_FILE = "generation_config.json"

AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)


@dataclass(frozen=True)
class ExportReport:
    """What the export keeps of the update.

    dtype: of the exported weights. update_error: their distance from the live ones, relative to what was learned (see
    RoundingLoss); None where both are equal. update_error_in_bfloat16: the same for an export in bfloat16, where `auto`
    considered one.
    """

    dtype: str
    update_error: float | None = None
    update_error_in_bfloat16: float | None = None


@dataclass
class Exporter:
    """Writes the policy.

    dtype: run.export_dtype. start: the weights before training; rounding is measured against them where the policy has
    no adapters. tokenizer_files: copied for a tokenizer that does not serialise.
    """

    tokenizer: PreTrainedTokenizerBase
    dtype: str = "auto"
    start: torch.nn.Module | None = None
    tokenizer_files: tuple[Path, ...] = ()

    def export(self, policy: PackedModel, directory: Path) -> ExportReport:
        """Write a copy of the policy with its adapters merged. The live model does not change."""
        return self.write(on_cpu(policy.model), directory)

    @torch.no_grad()
    def write(self, model: PreTrainedModel | PeftModel, directory: Path) -> ExportReport:
        """Write a model, or a peft model with its adapters merged. Changes the model."""
        if has_adapters(model):
            report = self._merge(model)
            model = cast("PreTrainedModel", model.unload())  # peft gives its method no type
        else:
            report = self._round(model)
        dtype = getattr(torch, report.dtype)
        for name, parameter in Beating(model.named_parameters()):
            rounds_a_decay = name.endswith(DECAY) and dtype.itemsize < parameter.itemsize
            if parameter.is_floating_point() and not rounds_a_decay:
                parameter.data = parameter.data.to(dtype)
        model.config._attn_implementation = "sdpa"  # users of the export do not have fastflow_packed
        self._save_model(model, directory)
        self._save_tokenizer(directory)
        return report

    def _merge(self, model: PeftModel) -> ExportReport:
        layers = Beating(layer for _, layer in adapted_layers(model))
        dtype, in_bfloat16 = _dtype_of(model.get_base_model()), None
        if self.dtype == "auto" and dtype == torch.bfloat16:
            loss = RoundingLoss()
            for layer in layers:
                merged_weight(layer, torch.bfloat16, loss)
            in_bfloat16 = loss.relative
            dtype = torch.float32 if in_bfloat16 > WORTH_A_WARNING else torch.bfloat16
        elif self.dtype != "auto":
            dtype = getattr(torch, self.dtype)
        loss = RoundingLoss()
        for layer in layers:
            merged = merged_weight(layer, dtype, loss)
            layer.base_layer.weight = torch.nn.Parameter(merged, requires_grad=False)
        return ExportReport(_name(dtype), loss.relative, in_bfloat16)

    def _round(self, model: PreTrainedModel) -> ExportReport:
        live = _dtype_of(model)
        dtype = live if self.dtype == "auto" else getattr(torch, self.dtype)
        if dtype.itemsize >= live.itemsize or self.start is None:
            return ExportReport(_name(dtype))
        loss, start = RoundingLoss(), dict(self.start.named_parameters())
        for name, weight in Beating(model.named_parameters()):
            if name in start:
                before = start[name].detach().to("cpu", torch.float64)
                loss.add(before, weight.double() - before, weight.to(dtype))
        return ExportReport(_name(dtype), loss.relative)

    def _save_model(self, model: PreTrainedModel, directory: Path) -> None:
        generation = model.generation_config
        save = functools.partial(write_split, model) if has_experts(model.config) else model.save_pretrained
        if generation is None or is_strictly_valid(generation):
            save(directory)
            return
        model.generation_config = type(generation)()
        save(directory)
        generation.to_json_file(directory / GENERATION_FILE, use_diff=True)  # unchanged

    def _save_tokenizer(self, directory: Path) -> None:
        if not self.tokenizer_files:
            self.tokenizer.save_pretrained(directory)
        for file in self.tokenizer_files:
            shutil.copyfile(file, directory / file.name)


def announce(report: ExportReport, config: Config, *, again: bool = False) -> None:
    """Log how much of what was learned the export's type loses; over 5 % is a warning. again: say only what is one."""
    loss = report.update_error
    if loss is None:
        return
    if loss > WORTH_A_WARNING:
        kept = "adapter/ has all of it; " if config.lora.rank else ""
        logger.warning(
            "the policy is saved in %s, whose rounding takes %.3g %% of what was learned (relative error of the weight "
            "update); %sset --run.export_dtype float32", report.dtype, 100 * loss, kept,
        )  # fmt: skip
        return
    if again:
        return
    instead = ""
    if (in_bfloat16 := report.update_error_in_bfloat16) is not None and report.dtype == "float32":
        instead = f", where bfloat16 would take {100 * in_bfloat16:.3g} %"
    logger.info(
        "the policy is saved in %s, whose rounding takes %.3g %% of what was learned%s",
        report.dtype, 100 * loss, instead,
    )  # fmt: skip


def is_strictly_valid(generation: GenerationConfig) -> bool:
    """Return whether transformers saves these generation settings without an error."""
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True


def on_cpu(model: AnyModule) -> AnyModule:
    """Return a copy in the CPU's memory. It needs no room on the GPU, and shares none with another process."""
    copies: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        copies[id(parameter)] = torch.nn.Parameter(parameter.detach().to("cpu", copy=True), requires_grad=False)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, copies)


def _dtype_of(model: torch.nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
