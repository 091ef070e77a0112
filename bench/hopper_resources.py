"""The gate for fastflow_kernels/hopper, which needs no GPU: compiles what it takes from QuACK, judges the machine code.

    python -m bench.hopper_resources [--architecture 90 100] [--kernel TEXT ...] [--json FILE]

Which kernels, in which variants: hopper_cases.py. What is read of them: compile_report.py. On sm_90, all of them must
compile, with tensor cores and TMA, without local memory, without a spill in the loops of the product and hardly one a
tile elsewhere, and with registers for three groups of four warps; a breach makes the exit status 1. Other architectures
are only reported. The status is 2 where nothing can be compiled.

Sizes are no constants to these kernels, so the tensors are small and on the CPU. A call compiles its kernel, then fails
for want of a driver.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.resources import BREACH, UNUSABLE, _aligned

ARCHITECTURES = {90: "sm_90a", 100: "sm_100a"}
MOST_REGISTERS = 168  # a thread, of 3 * 128: one group loads, two multiply, and they trade registers as they start
WARPS = 12
MOST_STACK = 16  # bytes a thread: of tiles of 192 columns, a predicate or two that outlive the loop
SPILLS = ("STL", "LDL")
NEEDED = {"HGMMA": "tensor cores", "UTMALDG": "TMA loads"}
COLUMNS = ("kernel", "registers", "stack", "spills", "in the product", "HGMMA", "TMA loads", "instructions", "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hopper_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--kernel", nargs="+", default=[""], metavar="TEXT", help="only those whose names begin so")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # compiles in this process, for the environment's
    options = parser.parse_args(arguments)
    if options.into:
        return _compile(options.kernel, options.into)
    if reason := _obstacle():
        print(f"bench.hopper_resources: {reason}", file=sys.stderr)
        return UNUSABLE
    started, breaches, report = time.monotonic(), [], {}
    for architecture in options.architecture:
        lines = judged(architecture, options.kernel)
        report[f"sm_{architecture}"] = lines
        print(f"\nsm_{architecture}\n{_table(lines)}", flush=True)
        if architecture == 90:
            breaches = [line for line in lines if line["breaches"]]
    if options.json:
        from bench.report import write_json

        write_json(options.json, report)
    print(f"\n{len(breaches)} kernels with a breach on sm_90, {time.monotonic() - started:.0f} s")
    for line in breaches:
        print(f"BREACH: sm_90 {line['kernel']}: {'; '.join(line['breaches'])}")
    return BREACH if breaches else 0


def judged(architecture: int, kernels: list[str]) -> list[dict]:
    """A line for each case, fit for JSON: what was compiled, and what is wrong with it."""
    from bench.hopper_cases import cases

    with tempfile.TemporaryDirectory() as folder:
        _compile_for(architecture, kernels, Path(folder))
        said = json.loads((Path(folder) / "said.json").read_text(encoding="utf-8"))
        return [
            _judge(name, Path(folder) / f"{number}.cubin", said[name])
            for number, name in enumerate(cases())
            if name.startswith(tuple(kernels))
        ]


def _obstacle() -> str | None:
    """Why nothing can be compiled here, or None."""
    from bench.compile_report import TOOLS, tool
    from fastflow_kernels.hopper.support import PACKAGES

    missing = [name for name in (*PACKAGES, "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install 'fastflow[hopper,triton]'."
    try:
        for name in TOOLS:
            tool(name)
    except FileNotFoundError as error:
        return str(error)
    return None


def _compile_for(architecture: int, kernels: list[str], folder: Path) -> None:
    """In a process of its own, since the compiler reads its environment once."""
    environment = os.environ | {
        "QUACK_ARCH": str(architecture),
        "QUACK_CACHE_ENABLED": "0",
        "CUTE_DSL_ARCH": ARCHITECTURES[architecture],
        "CUTE_DSL_KEEP_CUBIN": "1",
        "CUTE_DSL_DUMP_DIR": str(folder / "dump"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    (folder / "dump").mkdir()
    command = [sys.executable, "-m", "bench.hopper_resources", "--into", str(folder), "--kernel", *kernels]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the compiling process failed with status {done.returncode}: {done.stderr[-1500:]}")


def _compile(kernels: list[str], folder: Path) -> int:
    """Leave NUMBER.cubin for each case that compiles, and what its call said in said.json."""
    from bench.hopper_cases import cases

    said = {}
    for number, (name, call) in enumerate(cases().items()):
        if not name.startswith(tuple(kernels)):
            continue
        try:
            call()
            said[name] = "ran"
        except Exception as error:  # whatever a compiler or the want of a driver may raise
            said[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        for binary in (folder / "dump").glob("*.cubin"):
            binary.rename(folder / f"{number}.cubin")
    (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")
    return 0


def _judge(name: str, binary: Path, said: str) -> dict:
    from bench.compile_report import count_between, disassembled, read_cubin

    line = {"kernel": name}
    if not binary.is_file():
        return line | {"breaches": [f"does not compile: {said}"]}
    found = read_cubin(binary, shared_bytes=0, tensor_memory_columns=0, warps=WARPS)
    inside = count_between(disassembled(binary), SPILLS, "HGMMA")
    rules = [
        (found.registers > MOST_REGISTERS, f"{found.registers} registers, more than {MOST_REGISTERS}"),
        (found.local_bytes > 0, f"{found.local_bytes} bytes of local memory"),
        (found.stack_bytes > MOST_STACK, f"a stack of {found.stack_bytes} bytes, more than {MOST_STACK}"),
        (inside > 0, f"registers spill around the product: {inside} STL and LDL"),
        *((not found.count(code), f"no {meaning} ({code})") for code, meaning in NEEDED.items()),
    ]
    return line | {
        "registers": found.registers,
        "stack": found.stack_bytes,
        "spills": sum(found.count(code) for code in SPILLS),
        "in the product": inside,
        "HGMMA": found.count("HGMMA"),
        "TMA loads": found.count("UTMALDG"),
        "instructions": sum(found.instructions.values()),
        "breaches": [words for is_breach, words in rules if is_breach],
    }


def _table(lines: list[dict]) -> str:
    rows = [list(COLUMNS)]
    for line in lines:
        rows.append([str(line.get(name, "-")) for name in COLUMNS[:-1]] + ["; ".join(line["breaches"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, [*widths[:-1], 0]) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
