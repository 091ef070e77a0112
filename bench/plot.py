"""Time over limit against extra memory, one panel a group, our points highlighted; without memory, bars of time."""

from pathlib import Path

COLUMNS = 3
OURS, OTHERS = "#d1495b", "#5c677d"
LEAST_BYTES = 1e6  # where a call needs no extra memory, on an axis of logarithms
LABEL_POINTS = 7
LEGEND = "Diamonds are ours, joined where only their blocks differ. Hollow points give no answer to the op."


def write_plot(results: list, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [result for result in results if any(row["ratio_to_limit"] for row in result.rows)]
    if not results:
        return
    columns = min(COLUMNS, len(results))
    lines = -(-len(results) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(7 * columns, 5 * lines), squeeze=False)
    for panel, result in zip(axes.flat, results, strict=False):
        panel.set_title(str(result.group), fontsize=9)
        panel.tick_params(labelsize=8)
        rows = [row for row in result.rows if row["ratio_to_limit"]]
        points = [row for row in rows if row["extra_bytes"] is not None]
        if points:
            _draw_plane(panel, points)
        else:
            _draw_bars(panel, rows)
    for panel in axes.flat[len(results) :]:
        panel.axis("off")
    if any(row["extra_bytes"] is not None for result in results for row in result.rows):
        figure.supxlabel(LEGEND, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_plane(panel, rows: list[dict]) -> None:
    """Lower and further to the left is better."""
    for curve in _curves(rows):
        panel.plot(*zip(*map(_place, curve), strict=True), color=_colour(curve[0]), linewidth=0.8, alpha=0.6, zorder=1)
    for row in rows:
        colour = _colour(row)
        panel.scatter(
            *_place(row),
            s=60 if row["is_ours"] else 28,
            marker="D" if row["is_ours"] else "o",
            facecolors=colour if row["has_answer"] else "white",
            edgecolors=colour,
            zorder=3 if row["is_ours"] else 2,
        )
    panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    panel.set_xscale("log")
    panel.set_yscale("log")
    slowest = max(row["ratio_to_limit"] for row in rows)
    smallest, largest = (pick(_place(row)[0] for row in rows) for pick in (min, max))
    panel.set_ylim(0.9 * min(1.0, *(row["ratio_to_limit"] for row in rows)), 1.3 * slowest)
    panel.set_xlim(smallest / 1.15, 1.6 * largest * (largest / smallest) ** 0.35)  # room for names
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if slowest < 12 else "")
    panel.tick_params(which="minor", labelsize=6)
    panel.set_xlabel("extra memory, MB (beyond inputs and returned gradients)", fontsize=8)
    panel.set_ylabel("time / limit", fontsize=8)
    _label(panel, rows)


def _place(row: dict) -> tuple[float, float]:
    return max(row["extra_bytes"], LEAST_BYTES) / 1e6, row["ratio_to_limit"]


def _colour(row: dict) -> str:
    return OURS if row["is_ours"] else OTHERS


def _curves(rows: list[dict]) -> list[list[dict]]:
    """Providers that differ in one size only (NAME and NAME@SIZE), by their memory."""
    families: dict[str, list[dict]] = {}
    for row in rows:
        families.setdefault(row["provider"].partition("@")[0], []).append(row)
    return [sorted(family, key=_place) for family in families.values() if len(family) > 1]


def _label(panel, rows: list[dict]) -> None:
    """Each point's name to its right, moved up where it would lie on another name that is already there."""
    panel.figure.canvas.draw()  # fixes the axes' transformation
    height = LABEL_POINTS * panel.figure.dpi / 72 * 1.1
    taken: list[tuple[float, float, float]] = []  # left, right and bottom of the names placed, in pixels
    for row in sorted(rows, key=lambda row: row["ratio_to_limit"]):
        x, y = panel.transData.transform(_place(row))
        right = x + 0.62 * height * len(row["provider"])
        bottom = y
        while any(left < right and x < end and abs(bottom - other) < height for left, end, other in taken):
            bottom += height / 4
        taken.append((x, right, bottom))
        panel.annotate(
            row["provider"],
            _place(row),
            xytext=(6, (bottom - y) * 72 / panel.figure.dpi - LABEL_POINTS / 2),
            textcoords="offset points",
            fontsize=LABEL_POINTS,
            color=_colour(row),
            weight="bold" if row["is_ours"] else "normal",
        )


def _draw_bars(panel, rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda row: -row["ratio_to_limit"])
    ratios = [row["ratio_to_limit"] for row in rows]
    bars = panel.barh([row["provider"] for row in rows], ratios, color=[_colour(row) for row in rows])
    panel.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=2, fontsize=8)
    panel.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    panel.set_xlim(right=1.15 * max(ratios))
    panel.set_xlabel("time / limit", fontsize=8)
