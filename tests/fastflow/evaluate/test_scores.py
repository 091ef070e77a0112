"""Measures against brute force and by hand."""

from itertools import combinations

import numpy as np
import pytest

from fastflow.errors import FastflowError
from fastflow.evaluate import scores


def rows_of(*prompts):
    """Rows from a text a prompt: a letter is a class of answers, capital where it is right, "." has no answer."""
    rows = []
    for question, text in enumerate(prompts):
        for sample, letter in enumerate(text):
            verdict = "unparsed" if letter == "." else "right" if letter.isupper() else "wrong"
            rows.append({
                "question": question, "sample": sample, "verdict": verdict, "response": letter, "tokens": sample + 1,
                "vote_class": -1 if letter == "." else ord(letter), "finish_reason": "stop",
                "well_formed": letter != ".", "sampled_tokens": 2 * (sample + 1), "read_tokens": 0,
            })  # fmt: skip
    return rows


@pytest.mark.parametrize("right", range(7))
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(right):
    outcomes = [index < right for index in range(6)]
    for k in range(1, 7):
        brute = np.mean([any(chosen) for chosen in combinations(outcomes, k)])
        assert scores.pass_at(right, 6, k) == pytest.approx(brute)


@pytest.mark.parametrize(("right", "samples"), [(0, 1), (1, 1), (0, 5), (3, 64), (63, 64), (1, 4096), (4000, 4096)])
def test_pass_at_each_k_is_that_of_one(right, samples):
    curve = scores.pass_at_each(right, samples)
    assert curve.shape == (samples,)
    for k in {1, 2, samples // 3 + 1, samples}:
        if k <= samples:
            assert curve[k - 1] == pytest.approx(scores.pass_at(right, samples, k), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("k", [0, 7])
def test_pass_at_more_than_the_samples_is_refused(k):
    with pytest.raises(FastflowError, match="needs k from 1 to the 6 samples"):
        scores.pass_at(3, 6, k)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("AAbb", 0.5), ("AAAb", 1), ("Abb.", 0), ("....", 0), ("A...", 1), ("AAbbcc", 1 / 3), ("a.A.", 0.5), ("A", 1)],
)
def test_the_majority_vote_drops_no_answers_and_averages_ties(text, expected):
    assert scores.majority(rows_of(text)) == pytest.approx(expected)


def test_errors_are_those_of_prompts_and_not_of_samples():
    found = scores.score(rows_of("AAAA", "bbbb", "AAbb", "AAAA"))
    assert found["avg@4"]["value"] == pytest.approx(0.625)
    assert found["avg@4"]["error"] == pytest.approx(np.std([1, 0, 0.5, 1], ddof=1) / 2)
    assert found["pass_at"]["4"]["value"] == pytest.approx(0.75)
    assert found["verdicts"] == {"right": 10, "wrong": 6, "unparsed": 0, "timed_out": 0}
    assert found["distinct"]["value"] == pytest.approx((0.25 + 0.25 + 0.5 + 0.25) / 4)
    assert scores.score(rows_of("AAb."))["avg@4"]["error"] is None


def test_a_difference_is_paired_over_prompts():
    ours, theirs = rows_of("AAAA", "AAbb", "bbbb"), rows_of("AAAb", "Abbb", "bbbb")
    found = scores.difference(ours, theirs)
    steps = [0.25, 0.25, 0]
    assert found["value"] == pytest.approx(np.mean(steps))
    assert found["error"] == pytest.approx(np.std(steps, ddof=1) / 3**0.5)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * found["error"], rel=1e-3)
    shifted = [0.1 + value - value for value in (0.3, 0.7, 0.9)]  # equal but for rounding
    for equal in ([0.2] * 3, shifted, [0.0] * 4):
        alike = scores.with_interval(scores.estimate(equal))
        assert alike["low"] is None and alike["high"] is None
    with pytest.raises(FastflowError, match="different questions"):
        scores.difference(ours, theirs[:8])
