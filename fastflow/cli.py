"""The command line: fastflow demo | plan | train | replay | sweep | evaluate | grade | verify | report | doctor.

A command is imported when it is asked for, so that `fastflow --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from fastflow import __version__
from fastflow.config.parser import CommandParser
from fastflow.config.setting import suggest
from fastflow.errors import FastflowError, named_paths
from fastflow.interrupt import RunStopped, StopRequest, exit_code, stop_on_signals, tell
from fastflow.run.logs import open_console, show_warnings
from fastflow.streams import leave_dead_streams, open_missing_streams, print_in_any_encoding
from fastflow.visible import one_sentence, visible

SPEAKING_SECONDS = 10.0  # for a rank to leave the watch of the others, and to say why all end
COMMANDS = {  # in the order of the help, with what each does
    "demo": "make, sharpen and flatten two small models; about 3 minutes on a CPU",
    "plan": "say whether a run fits the memory",
    "train": "train a model",
    "sweep": "train with a grid of settings",
    "evaluate": "measure and compare models",
    "verify": "check the trainer against exact answers, on models small enough to have them",
    "grade": "grade responses in a JSONL: right, wrong, unparsed or timed out",
    "report": "write one self-contained HTML file about a run or an evaluation",
    "replay": "compute a skipped update of a run again, and say what goes bad in it",
    "doctor": "say what is installed, what works, and how to mend the rest",
}


def command() -> NoReturn:
    """Run `main` and end the process with its exit code."""
    open_missing_streams()
    print_in_any_encoding()
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torch's threads may abort a rank at exit, where another ended first
        os._exit(code)  # all files are closed, and `main` has flushed what was printed
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0; 1 when a check fails or a plan does not fit; 2 for refused input; 130
    after Ctrl-C; 143 after SIGTERM; 129 after SIGHUP.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with stop_on_signals():
        try:
            with named_paths():
                return _run(arguments)
        except RunStopped as stop:
            if not stop.silent:
                tell(f"fastflow: {one_sentence(str(stop))}")
            return stop.exit_code
        except FastflowError as error:
            if error.silent:
                _let_another_speak()
            else:
                tell(f"fastflow: error: {one_sentence(str(error))}")
            return error.exit_code
        except KeyboardInterrupt as stop:
            tell(f"fastflow: {stop if isinstance(stop, StopRequest) else 'interrupted'}")
            return exit_code(stop)
        finally:
            leave_dead_streams()


def _let_another_speak() -> None:
    """Wait for the rank that says why all of them end. torchrun stops the others as soon as one has ended."""
    with contextlib.suppress(StopRequest):
        time.sleep(SPEAKING_SECONDS)


def _run(arguments: list[str]) -> int:
    for name in arguments[:1]:
        if name in READ_SETTINGS:
            return READ_SETTINGS[name](arguments[1:])
        if name not in COMMANDS and not name.startswith("-"):
            raise FastflowError(f"unknown command {name!r}: {suggest(name, COMMANDS)}")
    parsed = _parser(arguments).parse_args(arguments)
    return parsed.run(parsed)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser of all commands; only the ones that are asked for have their own options."""
    parser = CommandParser(
        prog="fastflow",
        description="Fine-tune language models without labels or rewards: sharpen or flatten their own distribution.",
        epilog="fastflow COMMAND --help describes a command and its options.",
    )
    parser.add_argument("--version", action="version", version=f"fastflow {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    for name, does in COMMANDS.items():
        if name in READ_SETTINGS:
            commands.add_parser(name, help=does, add_help=False)
            continue
        own = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        if name == "demo":
            _add_demo(own)
        elif name in arguments:
            command = importlib.import_module(f"fastflow.{name}.command")
            command.add_arguments(own)
            own.set_defaults(run=command.run)
    return parser


def _train(arguments: list[str]) -> int:
    from fastflow.config.reader import build_parser, to_yaml

    if "--help" in arguments or "-h" in arguments:
        build_parser().print_help()
        return 0
    from fastflow.config.resume import read_request
    from fastflow.train.ranks.devices import run_on_devices, split_devices

    devices, arguments = split_devices(arguments)
    request = read_request(arguments)
    if devices > 1:
        from fastflow.train.ranks.launch import check_devices

        check_devices(request.config, devices)  # once, and before anything starts
    if request.dry_run:
        show_warnings(logging.StreamHandler())
        from fastflow.train.doubtful import warn_of_doubts
        from fastflow.train.dry_run import NO_PROMPT, check_inputs, warn_of_output
        from fastflow.train.places import check_places

        request.config.require_inputs()
        unchecked = check_places(request.config)
        if request.resume == "no":
            warn_of_output(request.config)
        first_prompt = check_inputs(request.config)
        warn_of_doubts(request.config)
        ready = ["Settings and prompts were checked. Leave out --dry-run to train."]
        ready = [] if first_prompt.startswith(NO_PROMPT) else ready
        comments = [f"# {visible(line)}\n" for line in (*first_prompt.splitlines(), *unchecked, *ready)]
        print(to_yaml(request.config) + "".join(comments), end="")
        return 0
    if devices > 1:
        return run_on_devices(devices, arguments)
    console = open_console()
    from fastflow.run.console import make_console
    from fastflow.train.command import train
    from fastflow.train.ranks.launch import naming_lost_ranks, watch_launcher
    from fastflow.train.ranks.meeting import meeting

    watch_launcher()
    with meeting(request.config) as (config, ranks), naming_lost_ranks(ranks):
        if not ranks.is_first:  # what they say, the first says too
            logging.getLogger("fastflow").setLevel(logging.ERROR)
            console = make_console(quiet=True)
        train(config, console, resume=request.resume, ranks=ranks)
        ranks.max(0)  # nobody leaves before the others are done
    return 0


def _plan(arguments: list[str]) -> int:
    from fastflow.plan import command as plan

    request = plan.read_arguments(arguments)
    return plan.run(request, open_console())


def _evaluate(arguments: list[str]) -> int:
    from pathlib import Path

    from fastflow.evaluate.settings import build_parser, read_settings

    if "--help" in arguments or "-h" in arguments:
        build_parser().print_help()
        return 0
    config = read_settings(arguments)
    console = open_console()
    from fastflow.evaluate.command import evaluate
    from fastflow.report.command import write_evaluation
    from fastflow.run.console import say

    evaluate(config, console)
    report = write_evaluation(Path(config.eval.output))
    say(console, f"report written to {report}")
    return 0


def _sweep(arguments: list[str]) -> int:
    from fastflow.sweep.request import build_parser, read_request

    if "--help" in arguments or "-h" in arguments:
        build_parser().print_help()
        return 0
    request = read_request(arguments)
    console = open_console()
    from fastflow.sweep.command import run

    return run(request, console)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    """Its options stand here, since its command.py imports torch."""
    parser.add_argument("--seed", type=int, default=0, help="seed of models, data and training (default: 0)")
    parser.add_argument("--output", default="runs/demo", help="directory for all that it makes (default: runs/demo)")
    parser.add_argument("--json", metavar="FILE", help="also write the comparison as JSON")
    parser.add_argument(
        "--rollout.engine", dest="engine", choices=("local", "vllm"), default="local",
        help="engine that samples while a policy trains (default: local)",
    )  # fmt: skip
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    console = open_console()
    from fastflow.demo.command import run_demo

    return run_demo(
        console, seed=arguments.seed, output=arguments.output, json_file=arguments.json, engine=arguments.engine
    )


READ_SETTINGS = {"train": _train, "plan": _plan, "evaluate": _evaluate, "sweep": _sweep}  # all their words themselves

if __name__ == "__main__":
    command()
