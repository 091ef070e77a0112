"""What of sampling, engine and the models' types decides responses: settings that results and keys of files hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastflow.config.schema import ModelConfig, RolloutConfig

SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_NEWER = {"top_k": 0, "min_p": 0.0, "template_arguments": None}  # than earlier results, which were made so
_HELD = ("dtype", "autocast", "attention", "fused_layers", "residual_stream")


def sampling(settings: Any) -> dict[str, Any]:
    """How tokens are drawn. settings: the section `eval` of training or of an evaluation."""
    return {name: getattr(settings, name) for name in SAMPLING}


def with_newer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of results of any version, with those that an earlier one did not have."""
    return _NEWER | dict(settings)


def in_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that name a file of responses: those of an earlier version are found again."""
    return {name: value for name, value in settings.items() if name not in _NEWER or value != _NEWER[name]}


def sampling_in_words(settings: dict[str, Any]) -> str:
    """The same as a part of a sentence."""
    settings = with_newer(settings)
    said = [f"temperature {settings['temperature']:g}", f"top-p {settings['top_p']:g}"]
    said += [f"top-k {settings['top_k']}"] if settings["top_k"] else []
    said += [f"min-p {settings['min_p']:g}"] if settings["min_p"] else []
    return ", ".join(said)


def drawn_by(rollout: RolloutConfig, model: ModelConfig) -> dict[str, Any]:
    """The engine with what ends its responses, and how the models are held."""
    ends = {"stop": list(rollout.stop), "min_response_tokens": rollout.min_response_tokens}
    return {"engine": rollout.engine, **ends, **{name: getattr(model, name) for name in _HELD}}


def in_words(settings: dict[str, Any]) -> str:
    """How prompts are put and the models held, and what ends a response, as sentences."""
    return " ".join((*_prompts(settings), *_models(settings)))


def _prompts(settings: dict[str, Any]) -> list[str]:
    if not settings.get("chat_template"):
        return ["Prompts are raw text."]
    variables = "".join(f", {name} = {value!r}" for name, value in (settings.get("template_arguments") or {}).items())
    said = [f"Prompts are rendered by the chat template{variables}."]
    if settings.get("system") is not None:
        said.append(f"The system message is {settings['system']!r}.")
    return said


def _models(settings: dict[str, Any]) -> list[str]:
    if "dtype" not in settings:  # results of an earlier version
        return []
    types = f"parameters in {settings['dtype']}"
    if settings["autocast"]:
        types += f", autocast to bfloat16 with a residual stream in {settings['residual_stream']}"
    said = [f"Models: {types}, attention {settings['attention']}, fused layers {settings['fused_layers']}."]
    if settings["stop"]:
        said.append(f"Responses end at {' or '.join(map(repr, settings['stop']))}.")
    if settings["min_response_tokens"]:
        said.append(f"They end after {settings['min_response_tokens']} tokens at the earliest.")
    return said
