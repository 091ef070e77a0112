"""A deliberately noisy corpus of worked two-digit additions, with the answer in a box.

Half of it is careful work, with so many openings that no single token announces it. The likeliest first token opens a
bare guess. A model with sharpened tokens therefore guesses; a model with sharpened sequences works the sum out.
"""

from __future__ import annotations

import re

import numpy as np

CAREFUL, GUESS, LOOP, BOXLESS = 0.50, 0.32, 0.10, 0.08  # shares of the corpus
DIGIT_NOISE = 0.04  # chance that a digit of careful work is wrong
MAX_CHECKS = 6  # repetitions in a chain that loops on a check

OPENINGS = ("well", "ok", "so", "now", "hmm", "right", "let", "first")
JOINS = (", ", ", then ", ", and ", ", next ")
ENDINGS = (": ", ", giving ", ", hence ", ", so ")

CHECK = ", check "
PIECES = tuple(dict.fromkeys(("\\boxed{", "}", " ", "+", "=", CHECK, *"0123456789", *OPENINGS, *JOINS, *ENDINGS)))
_BOXED = re.compile(r"\\boxed\{(\d+)\}")


def prompt(pair: tuple[int, int]) -> str:
    return f"{pair[0]}+{pair[1]}="


def all_pairs(seed: int, held_out: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Make every pair of two-digit numbers, in random order. Returns pairs to train on, and `held_out` pairs."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    order = np.random.default_rng([seed, 1]).permutation(len(pairs))
    shuffled = [pairs[index] for index in order]
    return shuffled[held_out:], shuffled[:held_out]


def write_response(pair: tuple[int, int], rng: np.random.Generator) -> str:
    """Write one response to `pair`, without the end-of-sequence token."""
    kind = rng.choice(4, p=(CAREFUL, GUESS, LOOP, BOXLESS))
    if kind == 1:
        return rf"\boxed{{{rng.integers(20, 199)}}}"
    work, answer = _work(pair, rng)
    if kind == 0:
        return work + _pick(ENDINGS, rng) + rf"\boxed{{{answer}}}"
    if kind == 2:
        check = f"{CHECK}{pair[0]}+{pair[1]}={answer}"
        return work + check * int(rng.integers(2, MAX_CHECKS + 1))
    return work + _pick(ENDINGS, rng) + answer


def is_correct(response: str, pair: tuple[int, int]) -> bool:
    """Whether the last box holds the sum."""
    found = _BOXED.findall(response)
    return bool(found) and int(found[-1]) == sum(pair)


def is_boxed(response: str) -> bool:
    return _BOXED.search(response) is not None


def _work(pair: tuple[int, int], rng: np.random.Generator) -> tuple[str, str]:
    """Write the column addition, with a small chance of a wrong digit, and the answer that follows from it."""
    (tens_a, ones_a), (tens_b, ones_b) = divmod(pair[0], 10), divmod(pair[1], 10)
    ones = _noisy(str(ones_a + ones_b), rng)
    carry = ones[:-1] or "0"
    tens = _noisy(str(tens_a + tens_b + int(carry)), rng)
    work = f"{_pick(OPENINGS, rng)} {ones_a}+{ones_b}={ones}{_pick(JOINS, rng)}{tens_a}+{tens_b}+{carry}={tens}"
    return work, tens + ones[-1]


def _noisy(digits: str, rng: np.random.Generator) -> str:
    return "".join(str(rng.integers(10)) if rng.random() < DIGIT_NOISE else digit for digit in digits)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]
