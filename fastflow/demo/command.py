"""`fastflow demo`: make the bases, train on them, evaluate before and after, print and write the comparison."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastflow.config.reader import read_config
from fastflow.config.schema import Config, ModelConfig
from fastflow.demo.comparison import print_comparison
from fastflow.demo.small_model import encode_prompt, make_model, make_tokenizer, pretrain
from fastflow.demo.tasks import STORIES, SUMS, DemoTask, judge
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.tokenizer import end_ids, load_tokenizer
from fastflow.models.weights.loading import load_causal_lm
from fastflow.report.command import write_combined
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams
from fastflow.run.directory import EVALUATION_FILE
from fastflow.run.durable import replace_json
from fastflow.run.lock import RunLock
from fastflow.run.output_file import writable, write_json, writing
from fastflow.train.command import train


def run_demo(console: Console, *, seed: int, output: str, json_file: str | None, engine: str = "local") -> int:
    """Run the whole demo. engine: samples while a policy trains (rollout.engine). Returns the exit code."""
    if seed < 0:
        raise FastflowError(f"--seed is {seed}, but must be at least 0")
    if json_file is not None:
        writable(Path(json_file))
    with RunLock(Path(output), "--output"):
        _run(Path(output), console, seed=seed, json_file=json_file, engine=engine)
    return 0


def _run(directory: Path, console: Console, *, seed: int, json_file: str | None, engine: str) -> None:
    torch.set_num_threads(1)  # as in the preset: such small models gain nothing from more cores
    start = time.perf_counter()
    results: dict[str, Any] = {}
    for task in (SUMS, STORIES):
        console.rule(task.title)
        results.update(run_task(task, directory / task.name, seed=seed, engine=engine, console=console))
    results["seconds"] = time.perf_counter() - start
    print_comparison(results, (SUMS, STORIES), console)
    report = write_combined(
        "fastflow demo", [(task.title, directory / task.name / task.labels[2]) for task in (SUMS, STORIES)],
        directory / "report.html",
    )  # fmt: skip
    console.print(f"report written to {report}; {results['seconds']:.0f} seconds in all", highlight=False)
    if json_file is not None:
        write_json(Path(json_file), results)


def run_task(task: DemoTask, directory: Path, *, seed: int, engine: str, console: Console) -> dict[str, dict[str, Any]]:
    """Run one direction: base, training, evaluations. Returns metrics by label."""
    base, run = directory / "base", directory / task.labels[2]
    topics, held_out = task.topics(seed, task.held_out)
    make_base(task, topics, base, seed=seed, console=console)
    prompts_file = directory / "prompts.jsonl"
    write_prompts(task, topics, prompts_file)

    policy = train(demo_config(task, base, prompts_file, run, seed=seed, engine=engine), console)

    with status(console, "evaluating"):
        evaluate = functools.partial(evaluate_model, task, held_out=held_out, seed=seed)
        results = {
            task.labels[0]: evaluate(base, temperature=1.0),
            task.labels[1]: evaluate(base, temperature=1 / task.alpha),
            task.labels[2]: evaluate(policy, temperature=1.0),
        }
    with writing(run):
        replace_json(run / EVALUATION_FILE, results)
    return results


def demo_config(task: DemoTask, base: Path, prompts: Path, run: Path, *, seed: int, engine: str) -> Config:
    """Configure `fastflow train --preset demo` with this task's settings."""
    settings = {
        "model.path": base,
        "data.path": prompts,
        "objective.alpha": task.alpha,
        "rollout.engine": engine,
        "rollout.max_response_tokens": task.max_response_tokens,
        "run.output": run,
        "run.overwrite": "true",
        "run.report": "false",
        "run.seed": seed,
        **task.settings,
    }
    config, _ = read_config(["--preset", "demo", *(f"--{name}={value}" for name, value in settings.items())])
    return config


def make_base(task: DemoTask, topics: list[Any], directory: Path, *, seed: int, console: Console) -> None:
    """Pretrain a small model on the task's corpus and save it as an ordinary transformers directory."""
    tokenizer = make_tokenizer(task.pieces)
    model = make_model(len(tokenizer), seed=seed)
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"pretraining a base of {count:,} parameters on a noisy corpus", highlight=False)

    def draw_example(rng: np.random.Generator) -> tuple[str, str]:
        topic = topics[rng.integers(len(topics))]
        return task.prompt(topic), task.respond(topic, rng)

    with pretraining_bar(console, task.pretraining_steps) as on_step:
        pretrain(
            model, tokenizer, draw_example, steps=task.pretraining_steps, batch_size=96, lr=4e-3, seed=seed,
            on_step=on_step,
        )  # fmt: skip
    model.causal_lm.config._attn_implementation = "sdpa"
    with writing(directory):
        model.causal_lm.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def write_prompts(task: DemoTask, topics: list[Any], file: Path) -> None:
    """Write one prompt a line, with its topic, as `data.path` reads it."""
    with writing(file), file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"prompt": task.prompt(topic), "topic": topic}) + "\n" for topic in topics)


def evaluate_model(task: DemoTask, path: Path, *, temperature: float, held_out: list[Any], seed: int) -> dict[str, Any]:
    """Compute the task's metrics of a saved model on the held-out topics."""
    settings = ModelConfig(path=str(path), device="cpu")
    tokenizer = load_tokenizer(settings)
    model = PackedModel(load_causal_lm(settings.path, settings))
    sampler = LocalSampler(model, eos_ids=end_ids(model, tokenizer), max_sequences=512)
    prompts = [encode_prompt(task.prompt(topic), tokenizer, {"topic": list(topic)}) for topic in held_out]
    params = SamplingParams(temperature=temperature, max_response_tokens=task.max_response_tokens)
    return judge(task, sampler, tokenizer, prompts, params, seed, greedy=temperature == 1.0)


@contextmanager
def status(console: Console, message: str) -> Iterator[None]:
    """Show a spinner on a terminal, and print a line elsewhere."""
    if not console.is_interactive:
        console.print(message)
        yield
        return
    with console.status(message):
        yield


@contextmanager
def pretraining_bar(console: Console, steps: int) -> Iterator[Any]:
    """Yield a function that takes each step's loss and shows it."""
    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        TextColumn("{task.fields[loss]:.3f} nats/token"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bars:
        bar = bars.add_task("pretraining", total=steps, loss=float("nan"))
        last = float("nan")

        def on_step(loss: float) -> None:
            nonlocal last
            last = loss
            bars.update(bar, advance=1, loss=loss)

        yield on_step
    console.print(f"  done at {last:.3f} nats per response token", highlight=False)
