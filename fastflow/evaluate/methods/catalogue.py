"""The methods that `--method` knows: what each reads, what it leaves no room for, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastflow.config.schema import RolloutConfig
from fastflow.errors import FastflowError

Name = Literal[
    "sample", "low_temperature", "best_of_n", "majority_vote", "beam", "mcmc_exact", "mcmc_published", "power_smc",
    "verbalized",
]  # fmt: skip
Value = int | float | None

PLAIN = "sample"
BLOCKS = 16  # of a response, in the published chain
SETTINGS = ("alpha", "steps", "block", "particles", "candidates", "tail")


@dataclass(frozen=True)
class Kind:
    """One method. text: what it does, in a clause that follows its name. source: the work that it comes from.

    defaults: the settings that it reads. whole_model: its target is the model's own distribution over whole responses,
    so that temperature, nucleus, least length and stop texts have no place. needs_spread: it chooses among several
    samples, which must differ. one_answer: it always gives the same answer to a prompt.
    """

    text: str
    source: str = ""
    defaults: Mapping[str, Value] = field(default_factory=dict)
    whole_model: bool = False
    sets_temperature: bool = False
    needs_spread: bool = False
    one_answer: bool = False


_MCMC = {"alpha": 4.0, "steps": 10, "block": None}
_MCMC_SOURCE = "Reasoning with Sampling, arXiv 2510.14901"

CATALOGUE: dict[str, Kind] = {
    PLAIN: Kind("plain sampling"),
    "low_temperature": Kind(
        "plain sampling at temperature 1 / alpha, which is not p^alpha", defaults={"alpha": 4.0}, sets_temperature=True
    ),
    "best_of_n": Kind(
        "the sample of largest log-probability of several", defaults={"candidates": 16}, needs_spread=True
    ),
    "majority_vote": Kind(
        "a sample with the most frequent answer of several", "Self-consistency, arXiv 2203.11171", {"candidates": 16},
        needs_spread=True,
    ),
    "beam": Kind(
        "beam search for the likeliest response", defaults={"candidates": 4}, whole_model=True, one_answer=True
    ),
    "mcmc_exact": Kind(
        "a Metropolis-Hastings chain whose distribution tends to p^alpha", _MCMC_SOURCE, _MCMC, whole_model=True
    ),
    "mcmc_published": Kind(
        "the chain of the published code, whose distribution does not tend to p^alpha", _MCMC_SOURCE, _MCMC,
        whole_model=True,
    ),
    "power_smc": Kind(
        "a population of weighted responses for p^alpha", "Power-SMC, arXiv 2602.10273",
        {"alpha": 4.0, "particles": 16, "block": 32}, whole_model=True,
    ),
    "verbalized": Kind(
        "one of several answers that the model writes with their probabilities, drawn by these",
        "Verbalized Sampling, arXiv 2510.01171", {"candidates": 5, "tail": None},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MethodSettings:
    """A method with every setting that it reads."""

    name: str
    values: Mapping[str, Value] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the catalogue says of it."""
        return CATALOGUE[self.name]

    def as_json(self) -> dict[str, Any]:
        """What identifies it in a cache and in results."""
        return {"name": self.name, **self.values}

    def number(self, name: str) -> float:
        """Return a setting that is a number."""
        value = self.values[name]
        if value is None:
            raise KeyError(f"{self.name} has no {name}")
        return float(value)

    def count(self, name: str) -> int:
        """Return a setting that is a whole number."""
        return int(self.number(name))


def resolve(settings: Any, rollout: RolloutConfig) -> MethodSettings:
    """Return the method of an evaluation's settings (`BenchmarkConfig`) with its defaults filled in.

    Raises FastflowError for settings that the method does not read, and for those that contradict it.
    """
    name = settings.method
    kind = CATALOGUE[name]
    given = {entry: getattr(settings, entry) for entry in SETTINGS if getattr(settings, entry) is not None}
    for entry in given:
        if entry not in kind.defaults:
            others = ", ".join(other for other, known in CATALOGUE.items() if entry in known.defaults)
            reads = ", ".join(kind.defaults) or "none of the methods' settings"
            raise FastflowError(
                f"eval.{entry} is set, but the method {name} does not read it (it reads {reads}); leave it out, or set "
                f"--method to one of {others}"
            )
    _refuse_contradictions(name, kind, settings, rollout)
    values = {entry: given.get(entry, default) for entry, default in kind.defaults.items()}
    if "block" in values:
        values["block"] = min(int(values["block"] or math.ceil(settings.max_tokens / BLOCKS)), settings.max_tokens)
    return MethodSettings(name, values)


def _refuse_contradictions(name: str, kind: Kind, settings: Any, rollout: RolloutConfig) -> None:
    if kind.whole_model or kind.sets_temperature:
        why = "sets it by alpha" if "alpha" in kind.defaults else "takes the model's own probabilities"
        if settings.temperature != 1:
            raise FastflowError(
                f"eval.temperature is {settings.temperature:g}, but the method {name} {why}; leave it at 1"
            )
    if kind.whole_model:
        for entry, value, free in (
            ("eval.top_p", settings.top_p, settings.top_p == 1),
            ("eval.top_k", settings.top_k, settings.top_k == 0),
            ("eval.min_p", settings.min_p, settings.min_p == 0),
            ("rollout.min_response_tokens", rollout.min_response_tokens, rollout.min_response_tokens == 0),
            ("rollout.stop", list(rollout.stop), not rollout.stop),
        ):
            if not free:
                raise FastflowError(
                    f"{entry} is {value}, but the method {name} works on the model's own distribution over whole "
                    "responses, which it would change; leave it out, or choose another method"
                )
    if kind.needs_spread and settings.temperature == 0:
        raise FastflowError(
            f"eval.temperature = 0 gives equal samples, and the method {name} chooses among several; raise it"
        )
    if kind.one_answer and settings.samples > 1:
        raise FastflowError(
            f"the method {name} always gives the same answer, and eval.samples asks for {settings.samples}; set "
            "--samples 1"
        )
    if name == "beam" and rollout.engine != "local":
        raise FastflowError(
            f"the method beam needs the logits of every token, which the engine {rollout.engine} does not hand out; "
            "set --rollout.engine local"
        )
