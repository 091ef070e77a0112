"""Draws the pages' plots from the dated results under bench/results, when mkdocs builds the pages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
KERNELS = ("2026-11-26-nvidia-h200-second-kernels", "2026-11-26-nvidia-h200-kernels")
STEP = "2026-11-26-nvidia-h200-step"
NAMES = {
    "fastflow": "fastflow, packed",
    "trl": "TRL's loss head, padded",
    "padded": "transformers and PyTorch, padded",
    "padded_by_length": "the same, sorted by length",
}


def draw(folder: Path) -> list[Path]:
    """Every plot, as `folder`/NAME.png with NAME that of its results."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in (*KERNELS, STEP)]
    for name, file in zip(KERNELS, files, strict=False):
        draw_kernels(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"], file)
    draw_step(json.loads((RESULTS / f"{STEP}.json").read_text(encoding="utf-8")), files[-1])
    return files


def draw_kernels(rows: list[dict], file: Path) -> None:
    """Time over the limit against extra memory, a panel for each op, shape and type."""
    sys.path.insert(0, str(ROOT))
    try:
        from bench.plot import write_plot
    finally:
        sys.path.remove(str(ROOT))
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"{row['op']}, {row['shape']}, {row['dtype']} on {row['device']}", []).append(row)
    write_plot([SimpleNamespace(group=group, rows=members) for group, members in groups.items()], file)


def draw_step(results: dict, file: Path) -> None:
    """One whole update: a bar for each contestant, cut into its phases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in results["rows"] if row["status"] == "ok"]
    names = [NAMES.get(row["contestant"], row["contestant"]) for row in rows]
    figure, panel = pyplot.subplots(figsize=(9, 1.2 + 0.7 * len(rows)))
    left = [0.0] * len(rows)
    for phase in rows[0]["phases_s"]:
        seconds = [row["phases_s"].get(phase, 0.0) for row in rows]
        panel.barh(names, seconds, left=left, label=phase)
        left = [start + width for start, width in zip(left, seconds, strict=True)]
    for place, row in enumerate(rows):
        text = f"  {row['median_s']:.2f} s, {row['peak_bytes'] / 1e9:.1f} GB"
        panel.text(left[place], place, text, va="center", fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(right=1.3 * max(left))
    panel.set_xlabel(f"seconds for one update, {results['environment']['hardware']}", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.legend(fontsize=7, ncols=3, loc="upper right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
