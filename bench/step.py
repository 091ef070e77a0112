"""One whole update at a real model's sizes: ours packed, others' padded, on the same random trajectories.

    python -m bench.step [--device cpu|cuda] [--quick] [--model 0.5B|1.5B|7B] [--layers L] [--seconds S]

An update scores the trajectories with the base, runs the policy forward and backward through the loss, and steps the
optimiser. Contestants: ours (the trainer's own learner), TRL's loss head over padded batches, plain transformers and
PyTorch over padded batches, and the same with batches sorted by length; steps/contest.py has them. All take the same
loss, and their losses and gradient norms must agree: exit status 1 where they do not, or where ours fails.
Utilisation counts the arithmetic that cannot be spared (steps/model.py) against the rate of products (steps/rate.py).
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

from bench.options import count

MODELS = ("0.5B", "1.5B", "7B")
PRECISIONS = ("float32", "mixed", "bfloat16")
CONTESTANTS = ("fastflow", "trl", "padded", "padded_by_length")

# Trajectories and settings where the command line names none
DEFAULTS = {
    "cuda": {
        "model": "1.5B",
        "layers": 4,
        "precision": "mixed",
        "prompts": 16,
        "responses": 8,
        "prompt_tokens": 256,
        "response_tokens": 700,
        "longest_response": 3072,
        "tokens_per_microbatch": 16384,
        "repeats": 5,
        "seconds": 70.0,
    },
    "cpu": {
        "model": "0.5B",
        "layers": 1,
        "precision": "float32",
        "prompts": 8,
        "responses": 4,
        "prompt_tokens": 16,
        "response_tokens": 16,
        "longest_response": 256,
        "tokens_per_microbatch": 1024,
        "repeats": 3,
        "seconds": 600.0,
    },
}
QUICK = {
    "cuda": {"prompts": 4, "repeats": 2, "seconds": 40.0},
    "cpu": {"repeats": 1, "seconds": 85.0, "contestant": CONTESTANTS[:3]},
}


def assignment(text: str) -> tuple[str, object]:
    """A setting's name and its value, read as YAML.

    >>> assignment("fused_layers=off"), assignment("checkpoint_share=0.5")
    (('fused_layers', 'off'), ('checkpoint_share', 0.5))
    """
    import yaml

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as attention=sdpa")
    read = yaml.safe_load(value)
    return name, value if isinstance(read, bool) and value not in ("true", "false") else read  # off is a word here


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description="Time, memory and utilisation of one whole update, ours and others'. Exit status 1 where the "
        "losses or gradients differ, or ours fails.",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="where to measure (default: cuda where there is one)")
    add("--quick", action="store_true", help="one call of each contestant; on the CPU, 32 responses in 90 seconds")
    add("--model", choices=MODELS, help="sizes of which Qwen2.5 model (default: cuda 1.5B, cpu 0.5B)")
    add("--layers", type=count, help="layers; 28 are all of 1.5B's and 7B's (default: cuda 4, cpu 1)")
    add("--precision", choices=PRECISIONS, help="mixed: float32 parameters, bfloat16 autocast (default: cuda mixed)")
    add("--gradient-checkpointing", action="store_true", help="recompute activations, all contestants alike")
    add("--prompts", type=count, help="prompts (default: cuda 16, cpu 8)")
    add("--responses", type=count, help="responses to each prompt (default: cuda 8, cpu 4)")
    add("--prompt-tokens", type=count, help="longest prompt (default: cuda 256, cpu 16)")
    add("--response-tokens", type=count, help="mean response (default: cuda 700, cpu 16)")
    add("--longest-response", type=count, help="responses are cut here (default: cuda 3072, cpu 256)")
    add("--tokens-per-microbatch", type=count, help="token slots of a forward pass (default: cuda 16384, cpu 1024)")
    add("--contestant", choices=CONTESTANTS, action="append", help="may be repeated (default: all)")
    add("--ours", type=assignment, action="append", default=[], metavar="NAME=VALUE",
        help="model.NAME of the trainer, such as residual_stream=bfloat16; may be repeated")  # fmt: skip
    add("--repeats", type=count, help="timed updates of each contestant (default: cuda 5, cpu 3)")
    add("--seconds", type=float, help="start nothing that would end after this time (default: cuda 70, cpu 600)")
    add("--seed", type=int, default=0, help="of weights, lengths and tokens (default: 0)")
    add("--json", type=Path, metavar="FILE", help="write rows, workload and environment here")
    add("--output", type=Path, metavar="FOLDER", help="write NAME.md and NAME.json into this folder")
    add("--name", default="step", help="stem of the files in --output (default: step)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = make_parser()
    options = parser.parse_args(arguments)

    import torch

    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    for name, value in (DEFAULTS[options.device] | (QUICK[options.device] if options.quick else {})).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return measure(options, started)


def measure(options: argparse.Namespace, started: float, shapes: dict | None = None) -> int:
    """shapes: in place of those of steps/model.py."""
    import torch
    from transformers.utils import logging

    from bench.environment import describe
    from bench.steps import table
    from bench.steps.contest import ENTRIES, Contest
    from bench.steps.model import SHAPES, write_checkpoint
    from bench.steps.rate import matrix_rate
    from bench.steps.settings import StepSettings
    from bench.steps.trajectories import Lengths, draw_groups, response_lengths, sequence_lengths

    logging.disable_progress_bar()
    shape = (shapes or SHAPES)[options.model]
    lengths = Lengths(
        options.prompts,
        options.responses,
        options.prompt_tokens,
        options.response_tokens,
        options.longest_response,
    )
    groups = draw_groups(lengths, shape.vocabulary, expected_logprob(shape), options.seed)
    inputs, responses = sequence_lengths(groups), response_lengths(groups)
    environment = describe(options.device)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(shape, options.layers, Path(folder), options.device, options.seed)
        settings = StepSettings(
            Path(folder),
            torch.device(options.device),
            options.precision,
            options.tokens_per_microbatch,
            options.gradient_checkpointing,
            dict(options.ours),
        )
        rate = matrix_rate(settings, shape)
        workload = {
            "model": shape.name,
            "layers": options.layers,
            "parameters": options.layers * shape.layer_parameters + (2 - shape.tied) * shape.head_parameters,
            "precision": options.precision,
            "gradient_checkpointing": options.gradient_checkpointing,
            "sequences": len(inputs),
            "tokens": sum(inputs),
            "response_tokens": sum(responses),
            "mean_response": sum(responses) / len(responses),
            "longest_response": max(responses),
            "tokens_per_microbatch": options.tokens_per_microbatch,
            "flops": shape.update_flops(options.layers, inputs, sum(responses)),
            "matrix_flops_per_s": rate.flops_per_s,
            "matrix_measured_on": rate.measured_on,
        }
        print(table.workload_line(workload), flush=True)
        contest = Contest(settings, groups, options.repeats, started + options.seconds)
        contest.run([entry for entry in ENTRIES if options.contestant is None or entry.name in options.contestant])
    wrong = contest.judge()
    markdown = table.as_markdown(environment, workload, contest.rows, wrong) + "\n"
    record = table.as_json(environment, workload, contest.rows, wrong)
    table.write(markdown, record, options.output, options.name, options.json)
    print(f"\n{markdown}\n{time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


def expected_logprob(shape) -> float:
    """Of a random token under random weights, whose logits are normal with deviation 0.02 sqrt(D)."""
    return -(math.log(shape.vocabulary) + 0.02**2 * shape.width / 2)


if __name__ == "__main__":
    sys.exit(main())
