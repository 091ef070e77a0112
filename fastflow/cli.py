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
from fastflow.run.logs import quiet_libraries, show_own_warnings, show_warnings
from fastflow.streams import leave_dead_streams, open_missing_streams
from fastflow.visible import one_sentence, visible

SPEAKING_SECONDS = 10.0  # for a rank to leave the watch of the others, and to say why all end
COMMANDS = ("demo", "doctor", "evaluate", "grade", "plan", "replay", "report", "sweep", "train", "verify")
OWN_OPTIONS = ("doctor", "grade", "replay", "report", "verify")  # which their command.py adds


def command() -> NoReturn:
    """Run `main` and end the process with its exit code."""
    open_missing_streams()
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
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise FastflowError(f"unknown command {arguments[0]!r}: {suggest(arguments[0], COMMANDS)}")
    if arguments[:1] == ["train"]:  # jsonargparse reads its options
        return _train(arguments[1:])
    if arguments[:1] == ["plan"]:  # and so are these
        return _plan(arguments[1:])
    if arguments[:1] == ["evaluate"]:
        return _evaluate(arguments[1:])
    if arguments[:1] == ["sweep"]:
        return _sweep(arguments[1:])
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

    def add(name: str, does: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    demo = add("demo", "make, sharpen and flatten two small models; about 3 minutes on a CPU")
    demo.add_argument("--seed", type=int, default=0, help="seed of models, data and training (default: 0)")
    demo.add_argument("--output", default="runs/demo", help="directory for all that it makes (default: runs/demo)")
    demo.add_argument("--json", metavar="FILE", help="also write the comparison as JSON")
    demo.add_argument(
        "--rollout.engine", dest="engine", choices=("local", "vllm"), default="local",
        help="engine that samples while a policy trains (default: local)",
    )  # fmt: skip
    demo.set_defaults(run=_demo)
    commands.add_parser("plan", help="say whether a run fits the memory", add_help=False)
    commands.add_parser("train", help="train a model", add_help=False)
    commands.add_parser("sweep", help="train with a grid of settings", add_help=False)
    commands.add_parser("evaluate", help="measure and compare models", add_help=False)
    verify = add("verify", "check the trainer against exact answers, on models small enough to have them")
    verify.set_defaults(run=_verify)
    grade = add("grade", "grade responses in a JSONL: right, wrong, unparsed or timed out")
    grade.set_defaults(run=_grade)
    report = add("report", "write one self-contained HTML file about a run or an evaluation")
    report.set_defaults(run=_report)
    replay = add("replay", "compute a skipped update of a run again, and say what goes bad in it")
    replay.set_defaults(run=_replay)
    doctor = add("doctor", "say what is installed, what works, and how to mend the rest")
    doctor.set_defaults(run=_doctor)
    for name in OWN_OPTIONS:
        if name in arguments:
            importlib.import_module(f"fastflow.{name}.command").add_arguments(commands.choices[name])
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
    quiet_libraries()
    from fastflow.run.console import make_console
    from fastflow.train.command import train
    from fastflow.train.ranks.launch import naming_lost_ranks, watch_launcher
    from fastflow.train.ranks.meeting import meeting

    watch_launcher()
    with meeting(request.config) as (config, ranks), naming_lost_ranks(ranks):
        if not ranks.is_first:  # what they say, the first says too
            logging.getLogger("fastflow").setLevel(logging.ERROR)
        train(config, make_console(quiet=not ranks.is_first), resume=request.resume, ranks=ranks)
        ranks.max(0)  # nobody leaves before the others are done
    return 0


def _plan(arguments: list[str]) -> int:
    from fastflow.plan import command as plan

    request = plan.read_arguments(arguments)
    quiet_libraries()
    return plan.run(request)


def _evaluate(arguments: list[str]) -> int:
    from pathlib import Path

    from fastflow.evaluate.settings import build_parser, read_settings

    if "--help" in arguments or "-h" in arguments:
        build_parser().print_help()
        return 0
    config = read_settings(arguments)
    quiet_libraries()
    from fastflow.evaluate.command import evaluate
    from fastflow.report.command import write_evaluation
    from fastflow.run.console import make_console, say

    console = make_console()
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
    quiet_libraries()
    from fastflow.run.console import make_console
    from fastflow.sweep.command import run

    return run(request, make_console())


def _demo(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from fastflow.demo.command import run_demo

    return run_demo(seed=arguments.seed, output=arguments.output, json_file=arguments.json, engine=arguments.engine)


def _verify(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from fastflow.verify.command import run

    return run(arguments)


def _grade(arguments: argparse.Namespace) -> int:
    show_own_warnings()  # it needs neither torch nor transformers
    from fastflow.grade.command import run

    return run(arguments)


def _replay(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from fastflow.replay.command import run

    return run(arguments)


def _report(arguments: argparse.Namespace) -> int:
    quiet_libraries()
    from fastflow.report.command import run

    return run(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from fastflow.doctor.command import run  # leaves the libraries alone: it must also run where they are broken

    return run(arguments)


if __name__ == "__main__":
    command()
