"""The contest as Markdown and JSON, headed by where and of what it was taken."""

from pathlib import Path

from bench.report import Record, aligned, write_json
from bench.steps.clock import PHASES
from bench.steps.contest import OURS

COLUMNS = ("contestant", "median s", "quartiles", f"x {OURS}", "tokens/s", "TFLOP/s", "% of matrix rate", "peak GB")
MORE_COLUMNS = ("token slots", "micro-batches", "calls", "loss", "gradient norm")


def as_markdown(environment: dict, workload: dict, rows: list[dict], wrong: list[str]) -> str:
    timed = [row for row in rows if row["median_s"] is not None]
    ours = next((row["median_s"] for row in timed if row["contestant"] == OURS), None)
    parts = [Record(environment).heading(), workload_line(workload)]
    if timed:
        table = [COLUMNS + MORE_COLUMNS, *(_cells(row, workload, ours) for row in timed)]
        phases = [("contestant", *PHASES), *(_phase_cells(row) for row in timed)]
        parts += ["\n".join(aligned(table)), "Seconds of each phase, medians:", "\n".join(aligned(phases))]
    parts.append("\n".join(f"- {row['contestant']}: {_words(row)}" for row in rows))
    parts += [f"WRONG: {line}" for line in wrong]
    return "\n\n".join(part for part in parts if part)


def _words(row: dict) -> str:
    """What kept a contestant from an answer, and how it works where that is known."""
    status = "" if row["status"] == "ok" else f"{row['status']}. "
    return (status + row["note"]).strip()


def workload_line(workload: dict) -> str:
    about = workload
    return (
        f"One update of {about['model']} sizes with {about['layers']} layers ({about['parameters'] / 1e6:.0f} M "
        f"parameters), {about['precision']}: {about['sequences']} sequences, {about['tokens']} tokens, "
        f"{about['response_tokens']} of them responses (mean {about['mean_response']:.0f}, longest "
        f"{about['longest_response']}), at most {about['tokens_per_microbatch']} token slots at once. "
        f"{about['flops'] / 1e12:.3g} TFLOP needed; matrix rate {about['matrix_flops_per_s'] / 1e12:.4g} TFLOP/s in "
        f"{about['matrix_measured_on']}."
    )


def _cells(row: dict, workload: dict, ours: float | None) -> tuple[str, ...]:
    median, (low, high) = row["median_s"], row["quartiles_s"]
    rate = workload["flops"] / median
    return (
        row["contestant"] + (" (!)" if row["agrees"] is False else ""),
        f"{median:.4g}",
        f"{low:.4g} to {high:.4g}",
        f"{median / ours:.2f}" if ours else "-",
        f"{workload['tokens'] / median:.0f}",
        f"{rate / 1e12:.4g}",
        f"{100 * rate / workload['matrix_flops_per_s']:.1f}",
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}",
        str(row["slots"]),
        str(row["microbatches"]),
        str(row["calls"]),
        f"{row['loss']:.5g}",
        f"{row['grad_norm']:.4g}",
    )


def _phase_cells(row: dict) -> tuple[str, ...]:
    return row["contestant"], *(f"{row['phases_s'][phase]:.3g}" for phase in PHASES)


def as_json(environment: dict, workload: dict, rows: list[dict], wrong: list[str]) -> dict:
    """Rows with the derived figures of the table: useful tokens per second, flops per second, utilisation."""
    full = []
    for row in rows:
        rate = workload["flops"] / row["median_s"] if row["median_s"] else None
        derived = {
            "tokens_per_s": workload["tokens"] / row["median_s"] if row["median_s"] else None,
            "flops_per_s": rate,
            "utilisation": rate and rate / workload["matrix_flops_per_s"],
        }
        full.append(row | derived)
    return {"environment": environment, "workload": workload, "rows": full, "wrong": wrong}


def write(markdown: str, record: dict, folder: Path | None, name: str, json_file: Path | None) -> None:
    if json_file:
        write_json(json_file, record)
    if folder:
        write_json(folder / f"{name}.json", record)
        (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
