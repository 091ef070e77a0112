"""Numbers with their nouns and units, and that messages are written with them."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastflow
from fastflow.counted import counted, sized


@pytest.mark.parametrize(
    ("count", "noun", "form", "text"),
    [
        (1, "prompt", "", "1 prompt"),
        (0, "prompt", "", "0 prompts"),
        (2, "recorded response", "", "2 recorded responses"),
        (1, "batch", "", "1 batch"),
        (3, "batch", "", "3 batches"),
        (1200, "entry", ",", "1,200 entries"),
        (2, "day", "", "2 days"),
        (1.0, "time", ".3g", "1 time"),
        (0.5, "time", ".3g", "0.5 times"),
    ],
)
def test_singular_and_plural(count, noun, form, text):
    assert counted(count, noun, form) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(3 * 2**30, "3.00 GiB"), (2**29, "0.50 GiB"), (5 * 2**20, "5.0 MiB"), (2048, "2.0 KiB"), (-(2**30), "-1.00 GiB")],
)
def test_bytes_for_people(number, text):
    assert sized(number) == text


def test_no_message_leaves_the_choice_to_its_reader():
    package = Path(fastflow.__file__).parent
    assert not [file for file in package.rglob("*.py") if "(s)" in file.read_text(encoding="utf-8")]
