"""Lines with bands, in the axes and in words."""

from fastflow.drawing.figure import make_axes
from fastflow.drawing.lines import Line, draw_lines
from fastflow.drawing.plot import solid


def test_a_band_ends_at_the_bounds_and_stands_where_errors_are_known():
    _, axes = make_axes()
    lines = [
        Line.around("base", solid(0), [1, 2, 4], [5.0, 50.0, 98.0], [10.0, 1.0, 4.0], lowest=0.0, highest=100.0),
        Line.around("policy", solid(1), [1, 4], [60.0, 61.0], [0.0, 0.0]),
    ]
    legend, spoken = draw_lines(axes, lines, x_name="k = ", unit=" %")
    assert (lines[0].low, lines[0].high) == ([0.0, 49.0, 94.0], [15.0, 51.0, 100.0])
    assert len(axes.collections) == 1 and len(axes.lines) == 2
    assert legend == (("base", "blue", "line", "98 %"), ("policy", "orange", "line", "61 %"))
    assert spoken == "base 5 % at k = 1, 98 % at k = 4; policy 60 % at k = 1, 61 % at k = 4"
