"""Loads a transformers causal LM from a directory or a hub id. Each failure becomes one sentence."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from fastflow.config.places import is_path
from fastflow.config.schema import ModelConfig
from fastflow.counted import counted
from fastflow.errors import FastflowError, message_of
from fastflow.models.layers.experts import has_experts
from fastflow.models.layers.rope import check_kinds
from fastflow.models.pulse import PULSE
from fastflow.models.weights.expert_names import check_experts
from fastflow.models.weights.files import (
    check_files,
    check_is_model,
    check_names,
    check_quantisation,
    check_tie,
    damaged,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

HUB_TIMEOUT = 10.0  # seconds for the hub to answer whether it has a model

FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "olmo2", "olmo3", "smollm3", "phi3", "granite", "gemma3_text", "qwen3_5_text",
    "qwen3_moe", "qwen3_5_moe_text",
)  # fmt: skip
WITH_IMAGES = ("qwen3_5", "qwen3_5_moe")  # families of which the text model is trained, and the one for images left out


class LoadedNames(TypedDict):
    """Weights that a model has and its files lack, the reverse, and those of two shapes: in the files, in the model."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]


def load_causal_lm(path: str, settings: ModelConfig) -> PreTrainedModel:
    """Load a causal LM of a supported family. Raises FastflowError where that fails, or weights are missing."""
    from transformers import AutoModelForCausalLM

    config = read_config(path, trust_remote_code=settings.trust_remote_code)
    if has_experts(config):
        check_experts(path, config.num_experts)
    with loading(path, "model"), _beating():
        model_and_names = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=getattr(torch, settings.dtype), trust_remote_code=settings.trust_remote_code,
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    model, loaded = cast("tuple[PreTrainedModel, LoadedNames]", model_and_names)  # output_loading_info makes it a pair
    check_names(path, loaded["unexpected_keys"])
    if other := sorted(loaded["mismatched_keys"]):  # which transformers is told to ignore, since it would not name them
        name, there, here = other[0]
        raise FastflowError(
            f"cannot load the model {path}: {counted(len(other), 'weight')} in its files with other shapes than "
            f"its config.json (first: {name}, {tuple(there)} instead of {tuple(here)}); check that both belong together"
        )
    check_tie(path, model.config, loaded["missing_keys"])
    if missing := sorted(loaded["missing_keys"]):
        raise FastflowError(
            f"{path} lacks {len(missing)} of its model's weights (first: {missing[0]}), so they would be random; "
            "check that its config.json and weights belong together"
        )
    # So that save_pretrained gives weights the model's own names, whatever those of its files are
    model._weight_conversions = None  # type: ignore[assignment]
    return model


def read_config(path: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """Read the model's configuration: that of its text model where it also sees images.

    Raises FastflowError where it, or the files of a local directory, name what fastflow does not train: another family,
    quantised weights, pickles, capped logits or attention scores, attention to later tokens.
    """
    from transformers import AutoConfig

    check_files(path)
    check_is_model(path)
    with loading(path, "model"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    check_quantisation(path, getattr(config, "quantization_config", None))
    if config.model_type in WITH_IMAGES:
        config = _text_of(config)
    if config.model_type not in FAMILIES and not trust_remote_code:
        raise FastflowError(_other_family(path, config.model_type))
    if not trust_remote_code:
        check_kinds(path, config)
    _check_computation(path, config)
    return config


def read_generation(path: str, *, fetch: bool = True) -> GenerationConfig:
    """Read the model's generation settings, as from_pretrained does. fetch: ask the hub for what is not here."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path, local_files_only=not fetch)
    except OSError:
        return GenerationConfig.from_pretrained(
            path, config_file_name="config.json", _from_model_config=True, local_files_only=not fetch
        )


def _text_of(whole: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of the text model, with what may stand in that of the whole alone."""
    text = whole.get_text_config()
    text.dtype = text.dtype or whole.dtype
    text.tie_word_embeddings = text.tie_word_embeddings or whole.tie_word_embeddings
    return text


def _other_family(path: str, family: str) -> str:
    supported = f"{', '.join(FAMILIES)}, and the text model of {' and '.join(WITH_IMAGES)}"
    said = f"{path} is of the family {family!r}; fastflow supports {supported}"
    if (text := f"{family}_text") in FAMILIES:
        said += f"; a {family} reads images, too: take a model of text alone, whose model_type is {text}"
    return said


def _check_computation(path: str, config: PretrainedConfig) -> None:
    """Raise FastflowError where a configuration asks for what fastflow does not compute."""
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        raise FastflowError(
            f"the config.json of {path} caps the logits (final_logit_softcapping = {cap}), and fastflow computes "
            "log-probs without such a cap; take a model that has none"
        )
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        raise FastflowError(
            f"the config.json of {path} caps the attention scores (attn_logit_softcapping = {cap}), and fastflow "
            "attends without such a cap; take a model that has none"
        )
    if both := getattr(config, "use_bidirectional_attention", None):
        raise FastflowError(
            f"the config.json of {path} lets tokens attend to later ones (use_bidirectional_attention = "
            f"{json.dumps(both)}), as models that embed texts do; their log-probs would know what follows, so there is "
            "nothing to train: take a model that attends to earlier tokens alone"
        )
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if windows and getattr(config, "sliding_window", None) is None:
        raise FastflowError(
            f"the config.json of {path} has layers of sliding attention and no sliding_window; set it, with "
            "use_sliding_window = true where the family has one"
        )


@contextlib.contextmanager
def loading(path: str, what: str, *, fetch: bool = True) -> Iterator[None]:
    """Turn each failure of loading into one sentence. Random numbers that a model draws for weights which its files
    replace are not missing afterwards: how it is loaded changes nothing that follows.

    fetch: whether the hub is asked for what is not here. One that cannot be reached is found at once.
    """
    here = Path(path).is_dir()
    if not here and is_path(path):
        raise FastflowError(
            f"model directory {path} does not exist; check the path (`fastflow demo` makes small models)"
        )
    if not here:
        _warn_of_neighbours(path)
    try:
        if fetch and not here:
            _reach_hub(path)
        with torch.random.fork_rng(devices=[]):
            yield
    except FastflowError:
        raise
    except Exception as error:  # a configuration of the wrong type, a damaged file, a model's own code
        plain = isinstance(error, (OSError, ValueError, RuntimeError))
        reason = message_of(error, typed=not plain)
        elsewhere = "" if here else f"{path} is no directory here, and as a hub id it fails: "
        remedy = "check the path or the hub id"
        if here and (file := damaged(path)):
            remedy = f"{file} is damaged or incomplete: download or copy it again"
        raise FastflowError(f"cannot load the {what} {path}: {elsewhere}{reason}; {remedy}") from error


@functools.cache
def _warn_of_neighbours(path: str) -> None:
    """Warn, once, that a hub is asked, which may take a minute, where the path may be a mistyped local one."""
    directory = Path(path).parent
    if "/" in path and directory.is_dir():
        there = [str(entry) for entry in directory.iterdir() if entry.is_dir()]
        near = "".join(f"; did you mean {name}?" for name in difflib.get_close_matches(path, there, n=1))
        logger.warning("%s is no directory here, so it counts as a hub id, and the hub is asked%s", path, near)


@functools.cache
def _reach_hub(path: str) -> None:
    """Raise OSError where a model is not in the cache and the hub cannot be reached; loading would try for a minute."""
    from huggingface_hub import HfApi, constants, errors, try_to_load_from_cache

    try:
        if constants.is_offline_mode() or try_to_load_from_cache(path, "config.json") is not None:
            return
        HfApi().model_info(path, timeout=HUB_TIMEOUT)
    except (errors.HfHubHTTPError, errors.HFValidationError):  # it answers, or refuses the name: loading says why
        return
    except Exception as error:  # that of the HTTP library, which is another one in older versions
        raise OSError(
            f"{constants.ENDPOINT} cannot be reached ({message_of(error, typed=True)}), and the cache has no such model"
        ) from error


@contextlib.contextmanager
def _beating() -> Iterator[None]:
    """Have each weight that is put into a module count as work, for the other ranks' watch."""
    hook = register_module_parameter_registration_hook(lambda *_: PULSE.work())
    try:
        yield
    finally:
        hook.remove()
