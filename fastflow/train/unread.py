"""Settings that differ from their defaults and that nothing in the run reads: one table of them, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from fastflow.config.help import shown
from fastflow.config.methods import (
    ANSWER,
    LIKELIHOOD_GRADIENTS,
    OFFLINE,
    POLICY_GRADIENTS,
    WITHOUT_ALPHA,
    WITHOUT_PENALTY,
)
from fastflow.config.program import HELD
from fastflow.config.schema import Config
from fastflow.data import is_file, is_gym
from fastflow.evaluate.task import is_own_file


class Unread(NamedTuple):
    """names: of settings; a section's name stands for all that it has. when: nothing reads them. why: said then."""

    names: tuple[str, ...]
    when: Callable[[Config], bool]
    why: str


def _has_no_format(config: Config) -> bool:
    return config.objective.format_pattern is None and config.objective.format_check is None


def _learns_no_log_z(config: Config) -> bool:
    return config.objective.log_z != "learned" or config.objective.name in (*POLICY_GRADIENTS, *OFFLINE)


_OF_VLLM = ("rollout.memory_fraction", "rollout.sleep", "rollout.adapters")
_OF_SERVERS = ("rollout.servers", "rollout.shared_folder")

TABLE = (  # METHOD stands for objective.name with its value; of two reasons for a setting the first one is said
    Unread(("data.subset", "data.split"), lambda c: is_gym(c.data), "data.path names prompts of reasoning-gym"),
    Unread(("data.subset", "data.split"), lambda c: is_file(c.data), "data.path is a file, which has one split"),
    Unread(("data.subset", "data.split"), lambda c: c.data.path.startswith(HELD), "a Python program has the prompts"),
    Unread(_OF_VLLM, lambda c: c.rollout.engine != "vllm", "rollout.engine is not vllm"),
    Unread(_OF_SERVERS, lambda c: c.rollout.engine != "vllm-server", "rollout.engine is not vllm-server"),
    Unread(("rollout.adapters",), lambda c: not c.lora.rank, "lora.rank = 0 trains no adapters"),
    Unread(("lora",), lambda c: not c.lora.rank, "lora.rank = 0 trains no adapters"),
    Unread(("objective.alpha",), lambda c: c.objective.name in WITHOUT_ALPHA, "METHOD heads for no power of the base"),
    Unread(("objective.log_z",), lambda c: c.objective.name in POLICY_GRADIENTS, "METHOD has no log_z"),
    Unread(
        ("objective.format_penalty",),
        lambda c: c.objective.name in WITHOUT_PENALTY,
        "METHOD applies no penalty: it counts malformed responses alone",
    ),
    Unread(
        ("objective.format_penalty",),
        _has_no_format,
        "neither objective.format_pattern nor objective.format_check says what is malformed",
    ),
    Unread(("objective.grader",), lambda c: not c.objective.compares_answers, "METHOD compares no answers"),
    Unread(
        ("objective.grader",),
        lambda c: c.objective.reward == ANSWER and is_gym(c.data),
        "prompts of reasoning-gym have a verifier of their own",
    ),
    Unread(("objective.answer_field",), lambda c: c.objective.reward != ANSWER, "objective.reward is not answer"),
    Unread(
        ("importance.clip_low", "importance.clip_high"),
        lambda c: c.objective.name == "flowrl" and c.objective.flowrl_form != "paper",
        "objective.flowrl_form has a bound of its own",
    ),
    Unread(("surrogate.kl_estimator",), lambda c: not c.surrogate.kl, "surrogate.kl = 0 leaves the KL out"),
    Unread(
        ("surrogate.divide_by_std",),
        lambda c: c.objective.name in LIKELIHOOD_GRADIENTS,
        "METHOD never divides by the deviation",
    ),
    Unread(("optim.log_z_lr",), _learns_no_log_z, "no log_z is learned"),
    Unread(
        ("optim.final_lr_ratio",), lambda c: c.optim.schedule == "constant", "optim.schedule = constant keeps the peak"
    ),
    Unread(("run.best_is",), lambda c: c.run.best_metric is None, "run.best_metric is not set"),
    Unread(("run.samples_per_dump",), lambda c: not c.run.samples_every, "run.samples_every = 0 writes none"),
    Unread(("eval",), lambda c: not c.eval.every, "eval.every = 0 evaluates nothing"),
    Unread(
        ("eval.top_p", "eval.top_k", "eval.min_p"),
        lambda c: not c.eval.temperature,
        "eval.temperature = 0 takes the likeliest token",
    ),
    Unread(("eval.grader",), lambda c: not any(map(is_own_file, c.eval.tasks)), "eval.tasks names no file of your own"),
)


def unread(config: Config) -> list[str]:
    """Say of the settings that differ from their defaults and that nothing reads, why that is so."""
    changed = _changed(config)
    said = []
    for names, when, why in TABLE:
        asked = [name for name in changed if name in names or name.partition(".")[0] in names]
        if asked and when(config):
            values = " and ".join(f"{name} = {shown(changed.pop(name))}" for name in asked)
            reason = why.replace("METHOD", f"objective.name = {config.objective.name}")
            said.append(f"{values} {'is' if len(asked) == 1 else 'are'} not read, since {reason}")
    return said


def _changed(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults, by their dotted names."""
    sections = [getattr(config, section.name) for section in dataclasses.fields(config)]
    return {name: value for section in sections for name, value in section.changed().items()}
