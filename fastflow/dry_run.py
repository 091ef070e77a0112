"""`fastflow train --dry-run`: everything that can be checked without loading a model or reaching a hub."""

from __future__ import annotations

from pathlib import Path

from fastflow.config import Config, ModelConfig
from fastflow.data import is_file, read_records
from fastflow.decoder_layers import check_compiler
from fastflow.fused_layers import choose_layers
from fastflow.model_files import check_files
from fastflow.objective import load_function, make_format_check
from fastflow.recorder import check_sinks


def check_inputs(config: Config) -> None:
    """Raise FastflowError for what would stop the run: missing inputs or packages, functions, a data file's records."""
    config.require_inputs()
    check_sinks(config)
    check_layers(config.model)
    for model in filter(None, (config.model.path, config.model.base)):
        check_files(model)
    make_format_check(config.objective)
    if config.objective.reward is not None:
        load_function(config.objective.reward, "objective.reward")
    if is_file(config.data) and Path(config.data.path).exists():
        read_records(config.data)


def check_layers(settings: ModelConfig) -> None:
    """Raise FastflowError where layers are asked for by name that this machine cannot run."""
    if settings.fused_layers != "liger" and settings.compile == "off":
        return
    from fastflow.models import resolve_device

    device = resolve_device(settings.device)
    if settings.fused_layers == "liger":
        choose_layers(settings.fused_layers, device)
    if settings.compile == "layers":
        check_compiler(device)
