"""Our ops and those of others on one problem: time against the machine's limit, peak memory, error against float64.

    python -m bench.kernels --device cpu|cuda [--quick] [--shape NxDxV] [--json FILE] [--output FOLDER]

Ops and their counted work: ops.py. The problem: problem.py. The limit: limits.py. Errors and their bounds:
errors.py. Who takes part, and how a user must run it: `--list`, providers/. Others give log-probs of tokens, and
the harness writes the sequence loss around them in plain torch, as a user would; ours takes the whole loss. Ours at
other sizes of blocks are further points of the plot, which shows time against extra memory: `--also fastflow@2048`.
Calls are interleaved, problems rotate, medians are reported with their quartiles. A provider that is missing,
fails or is wrong gets a row that says so; only a wrong answer of ours makes the exit status 1.
"""

import sys
import time

from bench.options import groups_of, make_parser, repeats_of


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    started = time.monotonic()

    import torch

    from bench import report
    from bench.environment import describe
    from bench.isolation import measure_apart, measure_here
    from bench.measure import Settings
    from bench.plot import write_plot
    from bench.providers import select

    try:
        providers = select(options.provider, quick=options.quick)
        if options.also:
            providers = select([provider.name for provider in providers] + options.also, quick=options.quick)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print("\n".join(f"{provider.name}\n    {provider.note}" for provider in providers))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")

    settings = Settings(
        repeats=repeats_of(options),
        seconds=options.group_seconds,
        mean_length=options.mean_length,
        memory=options.memory,
        deadline=started + options.budget if options.budget else float("inf"),
    )
    names = [provider.name for provider in providers]
    measure = measure_apart if options.device == "cuda" and not options.in_process else measure_here
    record = report.Record(describe(options.device))
    print(record.heading(), flush=True)
    for result in measure(groups_of(options), names, settings):
        record.add(result)
        print("\n" + report.group_table(result), flush=True)
        report.write(record, json_file=options.json, folder=options.output, name=options.name)
    if options.output:
        write_plot(record.results, options.output / f"{options.name}.png")
    print("\n" + report.notes(record.rows))
    print(f"\n{time.monotonic() - started:.0f} s")
    for line in record.wrong:
        print(f"WRONG: {line}")
    return 1 if record.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
