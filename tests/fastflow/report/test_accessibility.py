"""Headings in order, names for tables, plots and inputs, and contrast in both schemes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from evaluations import rows_of, write_evaluation
from fastflow.report import command as report
from fastflow.report.samples import COLOUR_LEVELS
from html_page import Page
from run_directories import EVALUATION, sample_record, write_run

pytest.importorskip("pyarrow")
LEAST_CONTRAST = 4.5
CSS = (Path(report.__file__).parent / "page.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S))
SCHEMES = pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """A run with everything, and an evaluation."""
    folder = tmp_path_factory.mktemp("page")
    run = write_run(folder / "run", samples=[sample_record("one")], evaluation=EVALUATION)
    write_evaluation(run / "evaluations", {"base": rows_of("Rwww", "RRww"), "policy": rows_of("RRRR", "wwww")})
    return Page(report.write_report(run))


def test_headings_are_in_order(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels) == {1, 2, 3, 4, 5, 6}
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_have_a_caption_and_scopes(page):
    tables = re.findall(r"<table.*?</table>", page.source, re.S)
    assert len(tables) > 5
    assert all(re.search(r"<caption[^>]*>[^<\s]", table) for table in tables)
    assert {attributes.get("scope") for tag, attributes in page.tags if tag == "th"} == {"row", "col"}


def test_plots_have_a_text_and_inputs_a_label(page):
    plots = re.findall(r'<div role="img" aria-label="([^"]{20,})"><svg [^>]*aria-hidden="true"', page.source)
    assert len(plots) == page.source.count("<svg ")
    for control in ("<input", "<select"):
        assert len(re.findall(rf"<label>[\w ]+{control}", page.source)) == page.source.count(control) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_scrolls_can_be_reached_by_keyboard_and_focus_is_seen(page):
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert regions and all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    assert ":focus-visible { outline: 2px solid var(--blue)" in CSS and "outline: none" not in CSS
    assert not [attributes for _, attributes in page.tags if int(attributes.get("tabindex") or 0) > 0]


def channels(colour: str) -> list[float]:
    if colour.startswith("#"):
        return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return [float(part) for part in colour.split()]


def luminance(colour: list[float]) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: list[float], other: list[float]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_is_that_of_the_standard():
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast(channels("#777777"), channels("#ffffff")) == pytest.approx(4.48, abs=0.01)


@SCHEMES
@pytest.mark.parametrize("name", ["ink", "muted", "blue", "orange", "green", "purple", "wrong", "warn"])
@pytest.mark.parametrize("ground", ["paper", "card", "warn-paper"])
def test_contrast(colours, name, ground):
    assert contrast(channels(colours[name]), channels(colours[ground])) >= LEAST_CONTRAST


@SCHEMES
@pytest.mark.parametrize("direction", ["up", "down"])
def test_contrast_of_coloured_tokens(colours, direction):
    """The template mixes each level into the card."""
    template = (Path(report.__file__).parent / "page.html.j2").read_text()
    (share,) = set(re.findall(r"\(([\d.]+) \* level / levels\)", template))
    for level in range(1, COLOUR_LEVELS + 1):
        alpha = float(share) * level / COLOUR_LEVELS
        pairs = zip(channels(colours[direction]), channels(colours["card"]), strict=True)
        mixed = [alpha * colour + (1 - alpha) * card for colour, card in pairs]
        assert contrast(channels(colours["ink"]), mixed) >= LEAST_CONTRAST


def test_both_schemes_define_the_same_colours_and_paper_is_light(page):
    assert LIGHT.keys() == DARK.keys()
    used = set(re.findall(r"var\(--([\w-]+)\)", page.source))
    assert used <= LIGHT.keys()
    assert re.findall(r"@media ([^{]*dark[^{]*)\{", CSS) == ["screen and (prefers-color-scheme: dark) "]
    printed = CSS[CSS.index("@media print") :]
    assert "max-height: none" in printed and "nav, .tools { display: none; }" in printed
