"""Results as a table to read (Markdown, also on the console), JSON and CSV."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from bench import errors

COLUMNS = ("provider", "NDV", "median ms", "quartiles", "x limit", "% of limit", "GFLOP/s", "peak MB", "extra MB")
ERROR_COLUMNS = ("log-prob error", "gradient error")


@dataclass
class Record:
    """Everything that was measured so far."""

    environment: dict
    results: list = field(default_factory=list)

    def add(self, result) -> None:
        self.results.append(result)

    @property
    def rows(self) -> list[dict]:
        return [row for result in self.results for row in result.rows]

    @property
    def wrong(self) -> list[str]:
        return [line for result in self.results for line in result.wrong]

    def heading(self) -> str:
        about = self.environment
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        hardware = about["hardware"]
        if about["device"] == "cuda":
            hardware += f", {about['memory_gib']} GiB, driver {about['driver']}, CUDA {about['cuda']}"
            hardware += ", float32 products without TF32" if about.get("float32_products") == "highest" else ""
        else:
            hardware += f", {about['threads']} threads"
        return (
            f"Date: {about['date']}. Hardware: {hardware}.\n"
            f"Software: Python {about['python']}, {versions}. Commit: {about['commit']}."
        )

    def as_json(self) -> dict:
        return {
            "environment": self.environment,
            "limits": [result.limit for result in self.results],
            "rows": self.rows,
            "wrong": self.wrong,
        }


def group_table(result) -> str:
    """One group as a Markdown table with aligned columns, the limit above it, skipped providers below."""
    timed = [row for row in result.rows if row["median_s"] is not None]
    timed.sort(key=lambda row: row["median_s"])
    lines = [f"### {result.group}", "", _limit_line(result.limit), ""]
    lines += aligned([COLUMNS + ERROR_COLUMNS, *(_cells(row) for row in timed)])
    median = {row["provider"]: row["median_s"] for row in timed}
    if "gemms" in median and "fastflow" in median:
        lines += ["", f"fastflow takes {median['fastflow'] / median['gemms']:.3f} times its products alone (gemms)."]
    lines += [""] + [f"- {reason}: {', '.join(names)}" for reason, names in _by_reason(result.rows).items()]
    return "\n".join(lines).rstrip()


def _by_reason(rows: list[dict]) -> dict[str, list[str]]:
    """Providers without a time, by what kept them from one."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["median_s"] is None:
            reasons.setdefault(row["status"], []).append(row["provider"])
    return reasons


def _limit_line(limit: dict | None) -> str:
    if limit is None:
        return "No limit: the products alone could not be timed."
    here = f"{limit['this_shape_flops_per_s'] / 1e9:.0f} GFLOP/s in the products of this shape"
    if limit["matmul_measured_on"] != "the products of this shape":
        here = f"{limit['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s in {limit['matmul_measured_on']} ({here})"
    return (
        f"Limit {limit['limit_s'] * 1e3:.4g} ms: {limit['flops']:.3g} flops at {here}; "
        f"{limit['bytes']:.3g} bytes at {limit['copy_bytes_per_s'] / 1e9:.0f} GB/s."
    )


def _cells(row: dict) -> tuple[str, ...]:
    low, high = (f"{1e3 * seconds:.4g}" for seconds in row["quartiles_s"])
    ratio = row["ratio_to_limit"]
    return (
        row["provider"] + ("" if row["within_bounds"] in (True, None) else " (!)"),
        str(row["flops_ndv"]),
        f"{row['median_s'] * 1e3:.4g}",
        f"{low} to {high}",
        f"{ratio:.3f}" if ratio else "-",
        f"{100 / ratio:.0f}" if ratio else "-",
        f"{row['flops'] / row['median_s'] / 1e9:.0f}",
        *("-" if row[name] is None else f"{row[name] / 1e6:.0f}" for name in ("peak_bytes", "extra_bytes")),
        *_error_cells(row["error"]),
    )


def _error_cells(found: dict | None) -> tuple[str, str]:
    """Log-probs in nats where tokens are given, relative where only sequences are; gradients in the 2-norm."""
    if found is None:
        return "-", "-"
    forward = found.get("token_logprob_abs", found.get("logprob_max"))
    gradient = errors.worst(found, "norm", errors.GRADIENTS)
    return tuple("-" if value is None else f"{value:.1e}" for value in (forward, gradient))


def aligned(table: list[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, numbers to the right."""
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded]) + " |"

    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    return [line(table[0]), "|" + "|".join(rule) + "|", *(line(cells) for cells in table[1:])]


def notes(rows: list[dict]) -> str:
    """How to read the tables, and how a user must run each provider that ran."""
    ran = {row["provider"]: row["note"] for row in rows if row["median_s"] is not None}
    return "\n".join(
        [
            "NDV: work counted, in multiples of N D V; GFLOP/s are of that work. x limit: median over limit. "
            "(!): beyond our error bounds.",
            "peak MB: memory of one call above its inputs; extra MB: the same without the gradients or log-probs that "
            "it must return.",
            "Errors against float64 on the same inputs: largest of the tokens' log-probs, nats; worst 2-norm of the "
            "gradients, relative.",
            "linear_logprob is set against 8 N D V, what it takes without holding the logits; holding them takes 6.",
            "",
            *(f"- {name}: {note}" for name, note in ran.items()),
        ]
    )


def write(record: Record, *, json_file: Path | None, folder: Path | None, name: str) -> None:
    """All files but the plot again, so that what was measured before an interruption is kept."""
    if json_file:
        write_json(json_file, record.as_json())
    if folder:
        write_json(folder / f"{name}.json", record.as_json())
        _write_csv(record.rows, folder / f"{name}.csv")
        text = "\n\n".join([record.heading(), *(group_table(result) for result in record.results), notes(record.rows)])
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def write_json(path: Path, tree) -> None:
    """Every file of figures; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(tree), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plain(value):
    """JSON has no infinity: an infinite error is the string "inf"."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _write_csv(rows: list[dict], path: Path) -> None:
    flat = []
    for row in rows:
        plain = {key: value for key, value in row.items() if key not in ("error", "quartiles_s")}
        low, high = row["quartiles_s"] or (None, None)
        flat.append(plain | {"quartile_low_s": low, "quartile_high_s": high} | (row["error"] or {}))
    names = list(dict.fromkeys(name for row in flat for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(flat)
