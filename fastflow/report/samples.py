"""Chooses the sampled responses that the page shows, and the colour of each token."""

from __future__ import annotations

import itertools
import math
from typing import Any

from fastflow.counted import counted
from fastflow.drawing.numbers import is_number, number
from fastflow.report.text import cut, printable

TOKENS_SHOWN = (900, 100)  # first and last tokens of a long response
COLOUR_LIMIT = 3.0  # nats; a larger log pi - log p_base has the full colour
COLOUR_LEVELS = 8


def chosen_samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose of the last dump the longest, and those with the highest and the lowest reward; where there is no reward,
    the best and the worst under the base. One response can be several.
    """
    last = last_of(samples)
    well_formed = [sample for sample in last if sample.get("well_formed") is not False] or last

    def by(name: str, missing: float) -> Any:
        return lambda sample: sample[name] if is_number(sample.get(name)) else missing

    rewarded = have_rewards(last)
    measure, of = ("reward", last) if rewarded else ("mean_base_logprob", well_formed)
    best, worst = ("highest reward", "lowest reward") if rewarded else ("best", "worst")
    roles: dict[int, tuple[list[str], dict[str, Any]]] = {}
    if last:
        for role, sample in (
            (best, max(of, key=by(measure, -math.inf))),
            (worst, min(last, key=by(measure, math.inf))),
            ("longest", max(last, key=by("length", -math.inf))),
        ):
            roles.setdefault(id(sample), ([], sample))[0].append(role)
    return [_card(" and ".join(names).capitalize(), sample) for names, sample in roles.values()]


def last_of(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples of the last dump."""
    return [sample for sample in samples if sample["step"] == samples[-1]["step"]]


def have_rewards(samples: list[dict[str, Any]]) -> bool:
    return any(is_number(sample.get("reward")) for sample in samples)


def _card(role: str, sample: dict[str, Any]) -> dict[str, Any]:
    """Collect what the template shows of one response."""
    tokens = sample.get("tokens") or []
    policy, base = ((sample.get(name) or [])[: len(tokens)] for name in ("logprobs", "base_logprobs"))
    spans = [_coloured_token(*entry) for entry in itertools.zip_longest(tokens, policy, base)]
    head, tail = TOKENS_SHOWN
    endings: dict[object, str] = {"stop": "ended by itself", "length": "cut at the length limit"}
    formats: dict[object, str] = {True: "well-formed", False: "malformed"}
    facts = [("step", sample["step"]), ("length", counted(sample.get("length", len(tokens)), "token")),
             ("", endings.get(sample.get("finish_reason"), "")),
             ("", formats.get(sample.get("well_formed"), ""))]  # fmt: skip
    measured = {"mean log π": "mean_logprob", "mean log p_base": "mean_base_logprob"}
    measured |= {"reward": "reward", "residual": "residual", "importance weight": "importance"}
    facts += [(label, number(sample[name])) for label, name in measured.items() if is_number(sample.get(name))]
    return {
        "role": role,
        "prompt": cut(str(sample.get("prompt", ""))),
        "response": cut(str(sample.get("response", ""))),
        "head": spans[:head] if len(spans) > head + tail else spans,
        "tail": spans[-tail:] if len(spans) > head + tail else [],
        "left_out": max(0, len(spans) - head - tail),
        "facts": [(label, value) for label, value in facts if value != ""],
    }


def _coloured_token(token: str, policy: Any, base: Any) -> tuple[str, str, str]:
    """Return (text, CSS class, tooltip) of a token: u1 to u8 where the policy gives it more than the base, d1 to d8
    where it gives it less.
    """
    if not (is_number(policy) and is_number(base)):
        return printable(str(token)), "", "log-probs not recorded"
    level = round(max(-1.0, min(1.0, (policy - base) / COLOUR_LIMIT)) * COLOUR_LEVELS)
    colour = f"{'u' if level > 0 else 'd'}{abs(level)}" if level else ""
    told = f"log π {policy:.2f}, log p_base {base:.2f}, difference {policy - base:+.2f}"
    return printable(str(token)), colour, told.replace("-", "−")  # noqa: RUF001
