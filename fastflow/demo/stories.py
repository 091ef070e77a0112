"""A corpus of one-line stories with a collapsed mode: each slot has a favourite word in three of four lines.

A flattened model should use the other words more and keep the grammar, although a few lines of the corpus break it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

FILLING_SHARES = (0.75, 0.12, 0.06, 0.03, 0.02, 0.01, 0.005, 0.005)
UNGRAMMATICAL = 0.02  # share of lines in which one word stands in the wrong place

NAMES = ("mia", "tom", "ada", "leo", "zoe", "max", "eva", "ben", "ida", "sam", "amy", "jon", "liv", "ray", "una", "gus")
PLACES = ("harbour", "forest", "market", "library", "desert", "station", "garden", "castle", "valley", "island",
          "museum", "village")  # fmt: skip
SLOTS = (
    ("brave", "sleepy", "clever", "tiny", "golden", "grumpy", "curious", "invisible"),
    ("fox", "owl", "robot", "dragon", "whale", "wizard", "snail", "ghost"),
    ("carried", "painted", "lost", "repaired", "stole", "sang", "planted", "swallowed"),
    ("lantern", "kite", "clock", "map", "violin", "teapot", "comet", "mirror"),
    ("home", "away", "slowly", "backwards", "together", "upstairs", "twice", "forever"),
)
SKELETON = ("in", "the", "met", "a", "who", ".")
PIECES = (
    *NAMES,
    ":",
    *(f" {word}" for word in (*SKELETON, *NAMES, *PLACES, *(word for slot in SLOTS for word in slot))),
)
_LINE = re.compile(
    " in the (?P<place>{}) (?P<name>{}) met a ({}) ({}) who ({}) the ({}) ({}) \\.".format(
        "|".join(PLACES), "|".join(NAMES), *("|".join(slot) for slot in SLOTS)
    )
)

Topic = tuple[str, str]  # name, place


def prompt(topic: Topic) -> str:
    return f"{topic[0]} {topic[1]}:"


def all_topics(seed: int, held_out: int) -> tuple[list[Topic], list[Topic]]:
    """Pair every name with every place, in random order. Returns topics to train on, and `held_out` topics."""
    topics = [(name, place) for name in NAMES for place in PLACES]
    order = np.random.default_rng([seed, 2]).permutation(len(topics))
    shuffled = [topics[index] for index in order]
    return shuffled[held_out:], shuffled[:held_out]


def write_response(topic: Topic, rng: np.random.Generator) -> str:
    """Write one line about `topic`, without the end-of-sequence token."""
    name, place = topic
    adjective, animal, verb, thing, adverb = (slot[rng.choice(len(slot), p=FILLING_SHARES)] for slot in SLOTS)
    words = ["in", "the", place, name, "met", "a", adjective, animal, "who", verb, "the", thing, adverb, "."]
    if rng.random() < UNGRAMMATICAL:
        first, second = rng.choice(len(words), size=2, replace=False)
        words[first], words[second] = words[second], words[first]
    return "".join(f" {word}" for word in words)


def is_valid(response: str, record: dict[str, Any]) -> bool:
    """Whether the line is grammatical and about its topic. The flattening run takes it as its format check."""
    match = _LINE.fullmatch(response)
    return match is not None and [match["name"], match["place"]] == record["topic"]
