"""What a save costs: how long training waits for it, beside a plain copy of the same tensors, and its bytes.

It also says how long another thread stands still while the save is written: no longer than without a save.

    python -m bench.saves [--layers 8] [--width 768] [--lora 0]

Exits with 1 where training waits over 1.3 times the plain copy, or the save takes over 1.02 times state and policy.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.demo.small_model import make_tokenizer
from fastflow.train.saves import checkpoint
from fastflow.train.trainer import Trainer

MOST_WAITING, MOST_BYTES = 1.3, 1.02
ROUNDS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0 trains all parameters")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), options)
        trainer.run()
        live = {id(one): one for group in trainer.learner.optimizer.param_groups for one in group["params"]}
        tensors = [
            *live.values(),
            *(each for one in live.values() for each in trainer.learner.optimizer.state[one].values()),
        ]
        plain, staged = waits(
            lambda: [tensor.detach().to("cpu", copy=True) for tensor in tensors],
            lambda: checkpoint.stage(trainer.learner, trainer.position.generators),
        )
        with Pauses() as beside:
            trainer.saver.save(replace(trainer.position, step=2, updates=2))
            trainer.saver.wait()
        with Pauses() as alone:
            time.sleep(beside.seconds)
        save = (Path(folder) / "run" / "policy").resolve().parent
        state = sum(tensor.nbytes for tensor in tensors)
        exported = sum(file.stat().st_size for file in (save / "policy").glob("*.safetensors"))
        if not options.lora:  # the exported policy is the weights
            state -= sum(parameter.nbytes for parameter in trainer.learner.policy.parameters())
        written = sum(file.stat().st_size for file in save.rglob("*") if file.is_file())
    waiting, bytes_ = staged / plain, written / (state + exported)
    print(f"training waits {staged * 1e3:.0f} ms, a plain copy takes {plain * 1e3:.0f} ms: {waiting:.2f} times")
    print(f"a save has {written / 1e6:.1f} MB, state and policy {(state + exported) / 1e6:.1f} MB: {bytes_:.3f} times")
    print(f"it is whole after {beside.seconds:.2f} s, beside the training")
    print(
        f"the longest pause of another thread is {beside.longest * 1e3:.0f} ms then, {alone.longest * 1e3:.0f} without"
    )
    return int(waiting > MOST_WAITING or bytes_ > MOST_BYTES)


class Pauses:
    """A thread of small operations, as they launch a model on a GPU, and the longest time that it stood still."""

    def __enter__(self) -> Pauses:
        self.longest, self._ends, self._started = 0.0, threading.Event(), time.perf_counter()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._ends.set()
        self._thread.join()

    def _work(self) -> None:
        tensor, before = torch.zeros(64), time.perf_counter()
        while not self._ends.is_set():
            tensor.add_(1)
            self.longest, before = max(self.longest, (now := time.perf_counter()) - before), now


def waits(*copies: Callable[[], object]) -> list[float]:
    """Seconds of each, the least of rounds in which they take turns: what is not somebody else's."""
    seconds: list[list[float]] = [[] for _ in copies]
    for _ in range(ROUNDS):
        for copy, times in zip(copies, seconds, strict=True):
            started = time.perf_counter()
            made = copy()
            times.append(time.perf_counter() - started)
            del made
    return [min(times) for times in seconds]


def make_trainer(folder: Path, options: argparse.Namespace) -> Trainer:
    """A run of one step on a model of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=40, hidden_size=options.width, intermediate_size=4 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=8,
        eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    make_tokenizer(list("abcdefghijklmnopqrstuvwxyz0123456789")).save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(4)))
    settings = {
        "model.path": folder / "model", "model.device": options.device, "data.path": folder / "prompts.jsonl",
        "lora.rank": options.lora, "rollout.max_response_tokens": 4, "batch.prompts_per_step": 2,
        "batch.responses_per_prompt": 2, "run.steps": 1, "run.output": folder / "run", "run.report": "false",
    }  # fmt: skip
    return Trainer(read_config([f"--{name}={value}" for name, value in settings.items()])[0], Console(quiet=True))


if __name__ == "__main__":
    sys.exit(main())
