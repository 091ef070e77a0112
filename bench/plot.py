"""Bars of time over limit, one panel a group."""

from pathlib import Path

COLUMNS = 3
OURS, OTHERS = "#d1495b", "#8d99ae"


def write_plot(results: list, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [result for result in results if any(row["ratio_to_limit"] for row in result.rows)]
    if not results:
        return
    columns = min(COLUMNS, len(results))
    lines = -(-len(results) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(6 * columns, 4 * lines), squeeze=False)
    for panel, result in zip(axes.flat, results, strict=False):
        _draw(panel, result)
    for panel in axes.flat[len(results) :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(panel, result) -> None:
    rows = sorted((row for row in result.rows if row["ratio_to_limit"]), key=lambda row: -row["ratio_to_limit"])
    ratios = [row["ratio_to_limit"] for row in rows]
    colours = [OURS if row["provider"] == "fastflow" else OTHERS for row in rows]
    bars = panel.barh([row["provider"] for row in rows], ratios, color=colours)
    panel.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=2, fontsize=8)
    panel.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    panel.set_xlim(right=1.15 * max(ratios))
    panel.set_title(str(result.group), fontsize=9)
    panel.set_xlabel("time / limit", fontsize=8)
    panel.tick_params(labelsize=8)
