"""The gate that needs no GPU: compiles every Triton kernel for every architecture, and judges the machine code.

    python -m bench.resources [--architecture 80 90 100 120] [--kernel NAME ...] [--all] [--candidates] [--json FILE]

Which kernels, in which variants: kernel_cases.py. How they are compiled: dry_launch.py. What is read of them:
compile_report.py. What is a breach: resource_limits.py; one makes the exit status 1. The status is 2 where nothing
can be compiled.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ARCHITECTURES = (80, 90, 100, 120)
KERNELS = ("project", "row", "row_tilt", "target_logit", "rebase", "combine", "finish", "sequence", "upstream")
BREACH, UNUSABLE = 1, 2
COLUMNS = {  # heading: key of the report's lines
    "kernel": "kernel",
    "variant": "variant",
    "registers": "registers",
    "stack": "stack_bytes",
    "spills": "spill_instructions",
    "shared": "shared_bytes",
    "tensor cores": "tensor_core_instructions",
    "TMA loads": "tma_loads",
    "TMA stores": "tma_stores",
    "cp.async": "asynchronous_copies",
    "epilogue": "epilogue_instructions",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS, help="only these (default: all)")
    parser.add_argument("--all", action="store_true", help="every shape with every combination of settings")
    parser.add_argument("--candidates", action="store_true", help="also the tiles that a search tries; never fatal")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default, of which triton 3.9 warns where it is unsaid
    if reason := _obstacle():
        print(f"bench.resources: {reason}", file=sys.stderr)
        return UNUSABLE

    import triton

    from bench import kernel_cases

    started = time.monotonic()
    usual = kernel_cases.USUAL
    print(f"triton {triton.__version__}, D {usual.width} and V {usual.vocabulary} where a variant names no other")
    lines, tried = [], []
    for architecture in options.architecture:
        cases = kernel_cases.cases(architecture, thorough=options.all)
        chosen = [case for case in cases if case.kernel in options.kernel]
        lines += _judge_all(f"sm_{architecture}", chosen, architecture)
        if options.candidates:
            candidates = list(kernel_cases.candidates(architecture))
            tried += _judge_all(f"sm_{architecture}, candidates", candidates, architecture)
    if options.json:
        from bench.report import write_json

        write_json(options.json, {"triton": triton.__version__, "kernels": lines, "candidates": tried})
    wrong = [line for line in lines if line["breaches"]]
    print(f"\n{len(lines)} kernels, {len(wrong)} with a breach, {time.monotonic() - started:.0f} s")
    for line in tried:
        if line["breaches"]:
            print(f"candidate: {_in_words(line)}")
    for line in wrong:
        print(f"BREACH: {_in_words(line)}")
    return BREACH if wrong else 0


def _obstacle() -> str | None:
    """Why nothing can be compiled here, or None."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set, so kernels would be interpreted and not compiled; unset it."
    try:
        import triton  # noqa: F401

        from bench.compile_report import TOOLS, tool

        for name in TOOLS:
            tool(name)
    except ImportError:
        return "Triton is not installed: pip install 'fastflow[triton]'."
    except FileNotFoundError as error:
        return str(error)
    return None


def _judge_all(title: str, cases: list, architecture: int) -> list[dict]:
    """Judge each case and print the table; on a terminal, a bar runs along."""
    from rich.console import Console
    from rich.progress import track

    terminal = Console(stderr=True)
    shown = track(cases, title, console=terminal, transient=True, disable=not terminal.is_terminal)
    lines = [judge(case, architecture) for case in shown]
    print(f"\n{title}\n{_table(lines)}", flush=True)
    return lines


def judge(case, architecture: int) -> dict:
    """One kernel_cases.Case as a line of the report, fit for JSON."""
    from bench.compile_report import resources_of
    from bench.dry_launch import compiling_for
    from bench.resource_limits import breaches
    from fastflow_kernels.tiles import SHARED_MEMORY

    line = {"architecture": architecture, "kernel": case.kernel, "variant": case.variant}
    try:
        with compiling_for(architecture) as compiled:
            case.launch()
    except Exception as error:  # whatever a compiler may raise
        reason = (str(error).strip().splitlines() or [""])[-1]
        return line | {"breaches": [f"does not compile: {type(error).__name__}: {reason[:300]}"]}
    if len(compiled) != 1:
        return line | {"breaches": [f"{len(compiled)} launches where there should be one"]}
    resources = resources_of(compiled[0].kernel, compiled[0].log)
    return line | {
        "registers": resources.registers,
        "stack_bytes": resources.stack_bytes,
        "local_bytes": resources.local_bytes,
        "spill_instructions": resources.count("STL") + resources.count("LDL"),
        "shared_bytes": resources.shared_bytes,
        "tensor_memory_columns": resources.tensor_memory_columns,
        "tensor_core_instructions": {name: n for name, n in resources.instructions.items() if name.endswith("MMA")},
        "tma_loads": resources.count("UTMALDG"),
        "tma_stores": resources.count("UTMASTG"),
        "asynchronous_copies": resources.count("LDGSTS"),
        "epilogue_instructions": resources.epilogue or None,
        "breaches": breaches(
            resources,
            SHARED_MEMORY[architecture],
            needs=case.needs,
            forbids=case.forbids,
            most_epilogue=case.most_epilogue,
        ),
    }


def _table(lines: list[dict]) -> str:
    rows = [[*COLUMNS, ""]]
    for line in lines:
        rows.append([*(_cell(line.get(key)) for key in COLUMNS.values()), "BREACH" if line["breaches"] else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: list[str], widths: list[int]) -> str:
    """Kernel and variant to the left, numbers to the right."""
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    cells[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
    return "  ".join(cells).rstrip()


def _cell(value) -> str:
    if isinstance(value, dict):
        return " ".join(f"{number} {name}" for name, number in value.items()) or "-"
    return "-" if value is None else str(value)


def _in_words(line: dict) -> str:
    return f"sm_{line['architecture']} {line['kernel']} ({line['variant']}): {'; '.join(line['breaches'])}"


if __name__ == "__main__":
    sys.exit(main())
