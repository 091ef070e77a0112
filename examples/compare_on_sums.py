r"""Compares methods on the demo's additions: the same base, prompts, batch and optimiser, only the method differs.

    python examples/compare_on_sums.py runs/compare grpo empo ttrl intuitor rent
    python examples/compare_on_sums.py runs/compare grpo --run.steps 200

The first argument is a folder, the names are those of the presets `compare-*`, and what follows goes to `fastflow
train` for each. The base is that of `fastflow demo`, made where the folder has none (a minute); a run takes a few
minutes. Prints measures on held-out sums, and writes them to comparison.json. Exits with 1 where grpo, which is told
what is right, stays below 90 %.
"""

import json
import sys
from pathlib import Path

from fastflow.config.methods import OFFLINE
from fastflow.config.presets import METHODS
from fastflow.config.reader import read_config
from fastflow.demo.command import evaluate_model, make_base
from fastflow.demo.tasks import SUMS
from fastflow.errors import FastflowError
from fastflow.run.console import make_console
from fastflow.train.command import train

SEED = 0
GRPO_REACHES = 0.9


def split(arguments: list[str]) -> tuple[Path, list[str], list[str]]:
    """The folder, the methods, and the options of `fastflow train`."""
    start = next((place for place, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    folder, *names = arguments[:start] or [""]
    methods = [name for name in METHODS if name not in OFFLINE]  # those learn from responses of a file
    if not names or not set(names) <= set(methods):
        raise FastflowError(f"give a folder and some of the methods {', '.join(methods)}, not {arguments[:start]}")
    return Path(folder), names, arguments[start:]


def main(arguments: list[str]) -> int:
    directory, names, options = split(arguments)
    console = make_console()
    topics, held_out = SUMS.topics(SEED, SUMS.held_out)
    base, prompts = directory / "base", directory / "prompts.jsonl"
    if not (base / "config.json").exists():
        make_base(SUMS, topics, base, seed=SEED, console=console)
    records = [{"prompt": SUMS.prompt(topic), "topic": topic, "answer": str(sum(topic))} for topic in topics]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    found = {"base": evaluate_model(SUMS, base, temperature=1.0, held_out=held_out, seed=SEED)}
    for name in names:
        settings = {
            "model.path": base,
            "data.path": prompts,
            "run.output": directory / name,
            "run.overwrite": "true",
            "run.seed": SEED,
            **METHODS[name],
        }
        if METHODS[name].get("objective.reward") == "answer" or name in ("empo", "ttrl"):  # they compare answers
            settings["objective.grader"] = "numeric"
        given = [
            f"--{setting}={str(value).lower() if value in (True, False) else value}"
            for setting, value in settings.items()
        ]
        policy = train(read_config(["--preset", "demo", *given, *options])[0], console)
        found[name] = evaluate_model(SUMS, policy, temperature=1.0, held_out=held_out, seed=SEED)
        (directory / "comparison.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"{'method':16}{'accuracy':>9}{'greedy':>9}{'pass@16':>9}{'boxed':>9}{'tokens':>9}{'entropy':>9}")
    for name, metrics in found.items():
        figures = [metrics["accuracy"], metrics["greedy_accuracy"], metrics["pass_at"]["16"], metrics["boxed_share"]]
        shares = "".join(f"{figure:9.1%}" for figure in figures)
        print(f"{name:16}{shares}{metrics['mean_length']:9.1f}{metrics['sequence_entropy']:9.2f}")
    return int(found.get("grpo", {}).get("accuracy", 1.0) < GRPO_REACHES)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FastflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
