"""What of the engine and of the models' types decides responses: settings that results and the keys of files hold."""

from __future__ import annotations

from typing import Any

from fastflow.config.schema import ModelConfig, RolloutConfig

_HELD = ("dtype", "autocast", "attention", "fused_layers", "residual_stream")


def drawn_by(rollout: RolloutConfig, model: ModelConfig) -> dict[str, Any]:
    """The engine with what ends its responses, and how the models are held."""
    ends = {"stop": list(rollout.stop), "min_response_tokens": rollout.min_response_tokens}
    return {"engine": rollout.engine, **ends, **{name: getattr(model, name) for name in _HELD}}


def in_words(settings: dict[str, Any]) -> str:
    """The same as sentences, but for the engine; "" for results that do not say it."""
    if "dtype" not in settings:
        return ""
    types = f"parameters in {settings['dtype']}"
    if settings["autocast"]:
        types += f", autocast to bfloat16 with a residual stream in {settings['residual_stream']}"
    said = [f"Models: {types}, attention {settings['attention']}, fused layers {settings['fused_layers']}."]
    if settings["stop"]:
        said.append(f"Responses end at {' or '.join(map(repr, settings['stop']))}.")
    if settings["min_response_tokens"]:
        said.append(f"They end after {settings['min_response_tokens']} tokens at the earliest.")
    return " ".join(said)
