"""flow_loss on the CPU against its limit and the materialised version: time, peak memory, error.

    python -m bench.flow_loss_cpu [--shape 2048x512x32000] [--repeats 5] [--json FILE]

Providers, forward and backward, float32:

    gemms_full     the three matrix products alone, over all rows at once, outputs allocated beforehand
    gemms_blocked  the same in the blocks of flow_loss: the limit, which has no row pass and no bookkeeping
    materialised   the reference: all logits at once, differentiated by autograd
    fastflow       flow_loss

Times are medians of interleaved repeats in this process, after one warm-up of each. Peak memory is the
growth of the maximum resident set over that with the inputs made, of one call in a fresh process per provider
(measured before this process grows: a child starts at its parent's maximum). Errors are the largest of loss,
log-probs and gradients against float64, max-norm, relative. Exit status 1 where an error of fastflow exceeds
1e-5 (forward) or 1e-4 (gradients).
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from fastflow_kernels import flow_loss, reference
from fastflow_kernels.blocks import default_block_rows, sequence_blocks

FORWARD_BOUND, GRADIENT_BOUND = 1e-5, 1e-4
SETTINGS = {"clip_low": 0.2, "clip_high": 0.28, "ratio": "token_mean"}


def make_inputs(row_count: int, width: int, vocabulary: int) -> dict:
    """Logits of unit scale; response lengths log-normal, mean about 200 tokens, sigma 0.6."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while sum(lengths) < row_count:
        length = int(torch.empty(1).log_normal_(5.12, 0.6, generator=generator).item()) + 1
        lengths.append(min(length, row_count - sum(lengths)))
    lengths_tensor = torch.tensor(lengths)
    hidden = torch.randn(row_count, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator).mul_(width**-0.5)
    expected = -(torch.tensor(float(vocabulary)).log() + 0.5)  # log-prob of a random token under unit-normal logits
    return {
        "hidden": hidden.requires_grad_(),
        "weight": weight.requires_grad_(),
        "targets": torch.randint(0, vocabulary, (row_count,), generator=generator),
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.int64), lengths_tensor.cumsum(0)]).int(),
        "log_z": torch.randn(len(lengths), generator=generator).requires_grad_(),
        "log_target": torch.full((len(lengths),), expected.item() + 2.0),
        "length_scale": 1.0 / lengths_tensor,
        "behaviour_logprob": expected * lengths_tensor,
    }


class Gemms:
    """The products alone. Their outputs persist, so that nothing but arithmetic is timed."""

    def __init__(self, inputs: dict, block_rows: int | None):
        self.hidden, self.weight = inputs["hidden"].detach(), inputs["weight"].detach()
        row_count, vocabulary = self.hidden.shape[0], self.weight.shape[0]
        if block_rows is None:
            self.blocks = [slice(0, row_count)]
        else:
            self.blocks = [block.rows for block in sequence_blocks(inputs["cu_seqlens"].tolist(), block_rows)]
        largest = max(block.stop - block.start for block in self.blocks)
        self.logits = torch.zeros(largest, vocabulary)
        self.d_hidden, self.d_weight = torch.zeros_like(self.hidden), torch.zeros_like(self.weight)

    def __call__(self) -> None:
        for number, rows in enumerate(self.blocks):
            logits = self.logits[: rows.stop - rows.start]
            torch.mm(self.hidden[rows], self.weight.t(), out=logits)
            torch.mm(logits, self.weight, out=self.d_hidden[rows])
            self.d_weight.addmm_(logits.t(), self.hidden[rows], beta=min(number, 1))


def loss_step(op, inputs: dict) -> dict[str, Tensor]:
    """One forward and backward; gradients are dropped by the caller, as a training step would."""
    result = op(**inputs, **SETTINGS, normaliser=inputs["log_z"].shape[0])
    names = ("hidden", "weight", "log_z")
    gradients = torch.autograd.grad(result.loss, [inputs[name] for name in names])
    outputs = {"loss": result.loss, "logprob": result.logprob, "token_logprob": result.token_logprob}
    outputs |= {f"d_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    return {name: value.detach() for name, value in outputs.items()}


def providers(inputs: dict) -> dict:
    block_rows = default_block_rows(inputs["weight"].shape[0])
    return {
        "gemms_full": lambda: Gemms(inputs, None),
        "gemms_blocked": lambda: Gemms(inputs, block_rows),
        "materialised": lambda: lambda: loss_step(reference.flow_loss, inputs),
        "fastflow": lambda: lambda: loss_step(flow_loss, inputs),
    }


def measure_times(inputs: dict, repeats: int) -> dict[str, float]:
    """Median seconds per provider, their calls interleaved."""
    calls = {name: make() for name, make in providers(inputs).items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _send_peak(name: str, shape: tuple[int, int, int], threads: int, pipe) -> None:
    torch.set_num_threads(threads)
    inputs = make_inputs(*shape)
    small = make_inputs(8, 8, 8)
    for make in providers(small).values():  # loads the libraries' code, which is not the provider's memory
        make()()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    providers(inputs)[name]()()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def measure_peak(name: str, shape: tuple[int, int, int]) -> int:
    """Bytes by which one call raises the resident maximum of a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(name, shape, torch.get_num_threads(), send))
    process.start()
    send.close()
    peak = receive.recv()
    process.join()
    return peak


def float64_answer(inputs: dict) -> dict[str, Tensor]:
    """The reference in float64, one sequence at a time: the loss is a sum, so memory stays small."""
    exact = {
        name: value.detach().double().requires_grad_(value.requires_grad) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    weight, boundaries = exact["weight"], exact["cu_seqlens"].tolist()
    parts = []
    total_d_weight = torch.zeros_like(weight)
    per_sequence = ("log_z", "log_target", "length_scale", "behaviour_logprob")
    for sequence, start in enumerate(boundaries[:-1]):
        rows, own = slice(start, boundaries[sequence + 1]), slice(sequence, sequence + 1)
        part = {name: exact[name].detach()[own] for name in per_sequence}
        part |= {"hidden": exact["hidden"].detach()[rows].requires_grad_(), "weight": weight}
        part |= {"targets": exact["targets"][rows], "cu_seqlens": torch.tensor([0, rows.stop - rows.start])}
        part["log_z"].requires_grad_()
        outputs = loss_step(reference.flow_loss, part)
        total_d_weight += outputs.pop("d_weight")
        parts.append(outputs)
    count = len(parts)  # each part was normalised by its own single sequence
    return {
        "loss": torch.stack([part["loss"] for part in parts]).sum() / count,
        "logprob": torch.cat([part["logprob"] for part in parts]),
        "token_logprob": torch.cat([part["token_logprob"] for part in parts]),
        "d_hidden": torch.cat([part["d_hidden"] for part in parts]) / count,
        "d_weight": total_d_weight / count,
        "d_log_z": torch.cat([part["d_log_z"] for part in parts]) / count,
    }


def measure_errors(inputs: dict) -> dict[str, tuple[float, float]]:
    """(forward, gradient) relative error of each provider that has an answer; infinite for nan."""
    exact = float64_answer(inputs)
    errors = {}
    for name, op in (("materialised", reference.flow_loss), ("fastflow", flow_loss)):
        worst = [0.0, 0.0]
        for output, value in loss_step(op, inputs).items():
            error = ((value - exact[output]).abs().max() / exact[output].abs().max()).item()
            kind = output.startswith("d_")
            worst[kind] = max(worst[kind], error if error == error else float("inf"))
        errors[name] = (worst[0], worst[1])
    return errors


def shape_of(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not rows x width x vocabulary, such as 2048x512x32000")
    row_count, width, vocabulary = (int(part) for part in parts)
    return row_count, width, vocabulary


def print_table(shape: tuple[int, int, int], rows: list[dict]) -> None:
    row_count, width, vocabulary = shape
    flops = 6 * row_count * width * vocabulary
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"N {row_count}, D {width}, V {vocabulary}, float32, {threads}")
    numbers = "".join(f" {name:>8}" for name in ("seconds", "x limit", "GFLOP/s", "peak MB"))
    print(f"{'provider':<14}{numbers} {'forward':>9} {'gradient':>9}")
    for row in rows:
        forward, gradient = (f"{error:9.1e}" if error is not None else f"{'-':>9}" for error in row["errors"])
        print(
            f"{row['provider']:<14} {row['seconds']:8.3f} {row['times_limit']:8.3f} "
            f"{flops / row['seconds'] / 1e9:8.0f} {row['peak_bytes'] / 1e6:8.0f} {forward} {gradient}"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flow_loss_cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=shape_of, default=(2048, 512, 32000), help="rows x width x vocabulary")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each provider")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args(arguments)

    peaks = {name: measure_peak(name, options.shape) for name in providers(make_inputs(8, 8, 8))}
    inputs = make_inputs(*options.shape)
    times = measure_times(inputs, max(options.repeats, 1))
    errors = measure_errors(inputs)
    rows = [
        {
            "provider": name,
            "seconds": times[name],
            "times_limit": times[name] / times["gemms_blocked"],
            "peak_bytes": peaks[name],
            "errors": errors.get(name, (None, None)),
        }
        for name in times
    ]
    print_table(options.shape, rows)
    if options.json:
        record = {
            "shape": options.shape,
            "torch": torch.__version__,
            "machine": platform.processor(),
            "rows": rows,
        }
        record["threads"] = torch.get_num_threads()
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    forward, gradient = errors["fastflow"]
    if forward > FORWARD_BOUND or gradient > GRADIENT_BOUND:
        print(
            f"fastflow is wrong: error {forward:.1e} (bound {FORWARD_BOUND}), "
            f"gradient {gradient:.1e} (bound {GRADIENT_BOUND})"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
