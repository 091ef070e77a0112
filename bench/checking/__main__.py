"""Every kernel of fastflow_kernels/triton under the checking interpreter, on a CPU.

    python -m bench.checking [--case NAME ...] [--thorough]     exit status 1 on a finding
    python -m bench.checking --planted                          exit status 1 on a planted defect that nothing sees

The cases of every CI run take half a minute, the thorough ones a quarter of an hour, the defects a minute.
"""

import argparse
import os
import sys
import time


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.checking", description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--thorough", action="store_true", help="every tile, shape and setting instead of the usual ones"
    )
    parser.add_argument("--planted", action="store_true", help="try the checks on kernels with a planted defect")
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "1"  # ahead of Triton's import

    import torch

    from bench.checking.cases import cases, thorough_cases

    torch.set_num_threads(1)  # the tensors are so small that more threads only wait for each other
    table = thorough_cases() if options.thorough else cases()
    unknown = [name for name in options.case or () if name not in table]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are: {', '.join(table)}")
    chosen = {name: table[name] for name in options.case or table}
    return _planted(chosen) if options.planted else _check(chosen, is_whole=not (options.case or options.thorough))


def _check(cases: dict, is_whole: bool) -> int:
    from bench.checking.cases import gaps_in_the_table

    started, wrong, launches = time.monotonic(), 0, 0
    for name, case in cases.items():
        begun = time.monotonic()
        findings = case.run()
        wrong += len(findings)
        launches += case.launches.total()
        print(f"{name}: {len(findings) or 'no'} findings, {time.monotonic() - begun:.1f} s", flush=True)
        for finding in findings:
            print(f"FOUND {finding}", flush=True)
    gaps = gaps_in_the_table(cases.values()) if is_whole else []
    print(*(f"GAP: {gap}" for gap in gaps), sep="\n", end="\n" * bool(gaps))
    print(f"{len(cases)} cases, {launches} launches, {wrong} findings, {time.monotonic() - started:.0f} s")
    return 1 if wrong or gaps else 0


def _planted(cases: dict) -> int:
    from bench.checking.defects import DEFECTS
    from bench.checking.planting import caught

    tried, missed = [defect for defect in DEFECTS if defect.case in cases], 0
    for defect in tried:
        words = caught(defect, cases)
        missed += words is None
        print(f"{'MISSED' if words is None else 'caught'} {defect}\n    {words or defect.case}", flush=True)
    print(f"{len(tried)} planted defects, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
