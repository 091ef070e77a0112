"""The plot of quality against diversity: its front, its points, and the picture beside a Markdown page."""

import itertools
import re
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from fastflow.drawing.pareto import Point, front, pareto_plot
from fastflow.drawing.picture import standalone
from fastflow.drawing.plot import styles

NAMES = {"svg": "http://www.w3.org/2000/svg"}
VALUES = st.integers(0, 4).map(float)


def drawn(points, **more):
    looks = styles([point.name for point in points])
    return pareto_plot(points, looks, "pareto", title="Poems", unit="", x_label="diversity", **more)


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314, our own drawing


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(values):
    points = [Point(str(place), x, y) for place, (x, y) in enumerate(values)]
    kept = front(points)
    assert kept
    for place, point in enumerate(points):
        beaten = any(
            (other.x > point.x and other.y >= point.y) or (other.x >= point.x and other.y > point.y) for other in points
        )
        assert beaten != (place in kept)
    for one, other in itertools.pairwise(kept):
        assert points[one].x <= points[other].x and points[one].y >= points[other].y


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=6),
    st.text(alphabet='a<&">$\\\x1b\ud800', max_size=5),
)
def test_every_model_stands_in_the_picture_whatever_its_name(values, name):
    points = [Point(f"{name}{place}", x, y, error, error) for place, (x, y, error) in enumerate(values)]
    picture = standalone(drawn(points, numbered=True))
    picture.encode()
    tree = parsed(picture)
    texts = ["".join(text.itertext()).strip() for text in tree.iterfind(".//svg:text", NAMES)]
    shown = name.replace("\x1b", "<1B>").replace("\ud800", "<D800>")
    for place in range(len(points)):
        assert str(place + 1) in texts  # beside its point
        assert any(text.startswith(f"{place + 1}  {shown}{place}: ") for text in texts)  # in the legend
    assert "var(--blue)" in picture and "#0102" not in picture
    *_, last = tree.findall("svg:text", NAMES)
    assert float(last.get("y")) < float(tree.get("height"))


def test_a_plot_names_each_point_and_the_front():
    plot = drawn([Point("a", 0.1, 0.5), Point("b", 0.3, 0.7), Point("c", 0.2, 0.2)])
    assert plot.legend == (
        ("a", "blue", "line", "0.5 at 0.1"),
        ("b", "orange", "line", "0.7 at 0.3"),
        ("c", "green", "line", "0.2 at 0.2"),
    )
    across, up = (re.findall(r">([0-9.]+)</text>", part) for part in plot.svg.split("diversity"))
    assert len(across) >= 3 and all(0 < float(tick) < 0.35 for tick in across)  # no whole numbers lie there
    assert len(up) >= 3
    assert plot.description == "Poems: a 0.5 at 0.1; b 0.7 at 0.3, on the front; c 0.2 at 0.2"
