"""What several ranks cost: an update on 2 of them against one rank's time for half the batch plus its communication.

    python -m bench.ranks [--ranks 2] [--repeats N] [--json FILE]

gloo on a CPU, one thread a rank. All three are measured in the same processes, in turns, while all ranks work side by
side: an uncut model's update on this rank's half; the bare collectives of an update on all ranks, of the same kinds and
sizes; and that update. A round takes as long as its slowest rank. Exits with 1 where the ratio is over 1.15.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bench.collectives import watched
from bench.options import count
from bench.processes import run_ranks
from bench.report import write_json

MOST = 1.15  # times one rank's time for half the batch plus the communication
WHAT = ("half", "communication", "update")
REDUCE = "all_reduce"
NAMES = (  # for gathering and scattering, newer versions of torch have names of their own
    REDUCE, "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather_single", "reduce_scatter_single",
)  # fmt: skip
PROMPT_TOKENS, LENGTHS = 16, (48, 80, 112, 144)  # of each prompt's responses


class Collective(NamedTuple):
    """One call: its name in torch.distributed, and elements and type of what it reads and writes."""

    name: str
    read: int
    written: int
    dtype: torch.dtype


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=count, default=2)
    parser.add_argument("--repeats", type=count, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--layers", type=count, default=4)
    parser.add_argument("--width", type=count, default=256, help="a multiple of 32 (default: 256)")
    parser.add_argument("--vocabulary", type=count, default=2048)
    parser.add_argument("--prompts", type=count, default=4, help="for each rank (default: 4)")
    parser.add_argument("--tokens", type=count, default=1024, help="of a micro-batch (default: 1024)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    if options.ranks < 2:
        parser.error("--ranks is 2 or more: one rank has nobody to share with")
    figures = measure(options)
    print_table(figures)
    if options.json:
        write_json(options.json, figures)
    return int(figures["ratio"] > MOST)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, and their ratio."""
    from bench.environment import describe

    measured = run_ranks(be_a_rank, options)
    rounds: dict[str, list[float]] = measured["seconds"]
    least = {what: min(times) for what, times in rounds.items()}
    return {
        "environment": describe("cpu"),
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
        "parameters": measured["parameters"],
        "tokens": measured["tokens"],
        "collectives": measured["collectives"],
        "bytes": measured["bytes"],
        "seconds": rounds,
        "least": least,
        "median": {what: statistics.median(times) for what, times in rounds.items()},
        "ratio": least["update"] / (least["half"] + least["communication"]),
        "most": MOST,
    }


def print_table(figures: dict[str, Any]) -> None:
    environment, ranks = figures["environment"], figures["settings"]["ranks"]
    print(
        f"{environment['date']}  {environment['hardware']}  torch {environment['versions']['torch']}  commit "
        f"{environment['commit']}\n{figures['parameters']:,} parameters, {figures['tokens']:,} tokens an update, "
        f"{ranks} ranks over gloo"
    )
    names = {
        "half": f"one rank, 1/{ranks} of the batch",
        "communication": f"{figures['collectives']} collectives, {figures['bytes'] / 1e6:.1f} MB a rank, bare",
        "update": f"{ranks} ranks, the batch",
    }
    print(f"{'':44}{'least':>10}{'median':>10}")
    for what, name in names.items():
        print(f"{name:44}{figures['least'][what]:8.3f} s{figures['median'][what]:8.3f} s")
    print(f"{ranks} ranks take {figures['ratio']:.3f} times the sum of the other two (at most {figures['most']})")


def be_a_rank(rank: int, port: int, options: argparse.Namespace, sender: Any) -> None:
    """Measure beside the other ranks; the first sends what all have measured."""
    from fastflow.models.ranks import Ranks, join, leave

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.ranks),
        "LOCAL_WORLD_SIZE": str(options.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    ranks = join(on_cuda=False, timeout=600)
    groups = make_groups(options, ranks.count * options.prompts)
    mine = groups[ranks.rank * options.prompts : (ranks.rank + 1) * options.prompts]
    alone, together = make_learner(options, Ranks()), make_learner(options, ranks)
    parameters = sum(one.numel() for one in alone.policy.parameters())
    tokens = together.update(groups).tokens
    recorded = record(lambda: together.update(groups))
    calls: dict[str, Callable[[], object]] = {
        "half": lambda: alone.update(mine),
        "communication": replay(recorded),
        "update": lambda: together.update(groups),
    }
    seconds: dict[str, list[float]] = {what: [] for what in WHAT}
    for number in range(options.repeats + 1):
        for what in WHAT:
            ranks.max(0)  # all begin together
            started = time.perf_counter()
            calls[what]()
            took = max(ranks.gather(time.perf_counter() - started))
            if number:
                seconds[what].append(took)
    if ranks.is_first:
        moved = sum(max(one.read, one.written) * one.dtype.itemsize for one in recorded)
        sender.send({
            "seconds": seconds, "parameters": parameters, "tokens": tokens, "collectives": len(recorded),
            "bytes": moved,
        })  # fmt: skip
    ranks.max(0)  # nobody leaves before the others are done
    leave()


def make_learner(options: argparse.Namespace, ranks: Any) -> Any:
    """A learner on a random Llama with tied embeddings, cut over the ranks where there are several."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from fastflow.config.schema import BatchConfig, Config
    from fastflow.models.cut.sharding import shard_models
    from fastflow.models.packed import FrozenModel, PackedModel
    from fastflow.train.learner import Learner

    torch.manual_seed(0)
    heads = options.width // 32
    settings = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=8 * options.width // 3 // 32 * 32,
        num_hidden_layers=options.layers, num_attention_heads=heads, num_key_value_heads=heads,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(settings)
    base = LlamaForCausalLM(settings)
    base.load_state_dict(model.state_dict())
    policy, frozen = PackedModel(model), FrozenModel(base)
    shard_models(policy, frozen, ranks)
    config = Config(batch=BatchConfig(tokens_per_microbatch=options.tokens))
    return Learner(policy, frozen, config, total_updates=1000)


def make_groups(options: argparse.Namespace, prompts: int) -> list[Any]:
    """Random trajectories, of the same lengths for each prompt."""
    import numpy as np

    from fastflow.data.trajectory import Group, Prompt, Trajectory

    rng = np.random.default_rng(0)

    def response(length: int) -> Trajectory:
        ids = rng.integers(1, options.vocabulary, length)
        return Trajectory(ids, np.full(length, -np.log(options.vocabulary), dtype=np.float32), "length")

    return [
        Group(Prompt(rng.integers(1, options.vocabulary, PROMPT_TOKENS)), tuple(map(response, LENGTHS)))
        for _ in range(prompts)
    ]


def record(call: Callable[[], object]) -> list[Collective]:
    """The collectives of a call, in their order; those of DTensors, a few numbers for the clipping, are left out."""
    found: list[Collective] = []

    def note(name: str, *tensors: Any, **more: Any) -> None:
        named = [more[key] for key in ("output", "output_tensor", "input", "input_tensor") if key in more]
        written, *rest = [*tensors, *named]
        read = rest[0] if rest and name != REDUCE else written
        found.append(Collective(name, read.numel(), written.numel(), read.dtype))

    with watched(NAMES, note):
        call()
    return found


def replay(collectives: Sequence[Collective]) -> Callable[[], None]:
    """The same collectives alone."""
    buffers = [
        (one.name, torch.zeros(one.written, dtype=one.dtype), torch.zeros(one.read, dtype=one.dtype))
        for one in collectives
    ]

    def run() -> None:
        for name, written, read in buffers:
            if name == REDUCE:
                dist.all_reduce(written)
            else:
                getattr(dist, name)(written, read)

    return run


if __name__ == "__main__":
    sys.exit(main())
