"""Kills runs at random moments, goes on with each, and compares it with the run that nobody disturbed.

    python -m tests.chaos --kills 100 --seed 0
    python -m tests.chaos --kills 20 --seed 0 --engine vllm
    python -m tests.chaos --kills 20 --seed 0 --ranks 2 [--engine vllm]
    python -m tests.chaos --every-operation        one kill at each file operation of a run, in their order;
                                                   --seed 0 to 3 takes the kind of run

A run counts as survived when its last save equals the undisturbed run's to the bit, with its metrics (but for times)
and its samples, and when no save with a final name was ever damaged. Exits with 1 otherwise. Runs are forked from this
process, which has everything imported, so that a kill costs a second and not ten.

With --ranks, a kill hits a random rank, an engine or the launcher. No process may be left, and a run counts as survived
when its weights equal the undisturbed run's to 1e-6. An engine is restarted; its kill counts where it ends the run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

import torch

torch.set_num_threads(1)

from cli_runs import options, settings  # noqa: E402
from dying import GONE, FileOperations, exit_code, in_a_child  # noqa: E402
from fastflow.config.schema import Config  # noqa: E402
from fastflow.run.manifest import verify  # noqa: E402
from fastflow.train.progress import RunProgress  # noqa: E402
from fastflow.train.saves.saver import Saver  # noqa: E402
from forked_ranks import Pids, children_of, end_of, launch  # noqa: E402
from resumed_runs import check_same, configure, metrics_of, newest_save, run_to_the_end, tensors_of  # noqa: E402
from small_models import save_model  # noqa: E402

COMMON = {"run__steps": 5, "run__save_every": 1, "run__samples_every": 1, "optim__lr": 1e-2}
KINDS = {
    "learned log_z": {},
    "group mean, two updates": {"objective__log_z": "group_mean", "batch__updates_per_rollout": 2},
    "lora": {"lora__rank": 2, "lora__dropout": 0.2, "run__keep": 1},
    "cosine, rounded export": {"optim__schedule": "cosine", "run__export_dtype": "bfloat16", "run__save_every": 2},
}
PHASES = ("starting", "sampling", "updating", "saving", "saving beside sampling", "saving beside updating")


class Watched:
    """What a child is doing, in memory that its parent reads after its end."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2)

    def begin(self) -> None:
        """In the child."""
        memory, phase, write = self._memory, RunProgress.phase, Saver._write

        def noted_phase(self: RunProgress, name: str, total: int) -> None:
            memory[0] = 1 if name == "sampling" else 2
            phase(self, name, total)

        def noted_write(self: Saver, *arguments) -> None:
            memory[1] = 1
            write(self, *arguments)
            memory[1] = 0

        RunProgress.phase, Saver._write = noted_phase, noted_write

    def read(self) -> str:
        main, saving = self._memory[0], self._memory[1]
        self._memory[0] = self._memory[1] = 0
        return PHASES[3 + main] if saving else PHASES[main]


class Chaos:
    """home: where all runs are. log: what they print."""

    def __init__(self, home: Path, engine: str, seed: int):
        self.home, self.log = home, home / "log"
        self.random = random.Random(seed)
        self.engine = {"rollout__engine": engine} if engine != "local" else {}
        self.watched = Watched()
        if engine == "vllm":
            save_model(home / "model", head_dim=32)  # the least that its attention takes
        self.kinds = KINDS if engine == "local" else {"learned log_z": {}}
        self._undisturbed: dict[str, tuple[Path, float]] = {}

    def config(self, kind: str, output: Path) -> Config:
        return configure(self.home, **{**COMMON, **self.kinds[kind], **self.engine, "run__output": output})

    def start(self, config: Config, dying_at: int = 0) -> int:
        def work() -> None:
            self.watched.begin()
            if dying_at:
                FileOperations(Path(config.run.output), at=dying_at)
            run_to_the_end(config, resume="auto")

        return in_a_child(work, output=self.log)

    def undisturbed(self, kind: str) -> tuple[Path, float]:
        """The run that nobody kills, and the seconds that it takes."""
        if kind not in self._undisturbed:
            output, started = self.home / f"undisturbed {kind}", time.monotonic()
            self.must_succeed(self.start(self.config(kind, output)))
            self._undisturbed[kind] = output, time.monotonic() - started
        return self._undisturbed[kind]

    def must_succeed(self, child: int) -> None:
        if (code := exit_code(child)) != 0:
            raise SystemExit(f"a run ended with {code}:\n{self.log.read_text()[-4000:]}")

    def check(self, kind: str, output: Path) -> None:
        check_same(self.undisturbed(kind)[0], output)

    def kill(self, child: int) -> str | None:
        """Kill a run. Returns what was killed in it, where there is more than one process; None where it was done."""
        os.kill(child, signal.SIGKILL)
        return None if exit_code(child) == 0 else ""

    def random_kills(self, count: int) -> Iterator[str]:
        """Yields the phase in which each kill hit."""
        number = killed = 0
        while killed < count:
            kind = self.random.choice(list(self.kinds))
            _, seconds = self.undisturbed(kind)
            config = self.config(kind, self.home / f"run-{number}")
            for _ in range(self.random.randint(1, 4)):  # resumed runs are killed again
                if killed == count:
                    break
                child = self.start(config)
                time.sleep(self.random.uniform(0, seconds))
                victim = self.kill(child)
                if victim is None:
                    break  # it was done already
                killed += 1
                check_saves(Path(config.run.output))
                yield f"{self.watched.read()}{victim}"
            self.must_succeed(self.start(config))
            self.check(kind, Path(config.run.output))
            shutil.rmtree(config.run.output)
            number += 1

    def every_operation(self, kind: str, first: int, stride: int) -> Iterator[int]:
        """Yields the number of each operation at which a run was killed and resumed."""
        self.undisturbed(kind)
        at = first
        while True:
            config = self.config(kind, self.home / f"run-{at}")
            code = exit_code(self.start(config, dying_at=at))
            if code == 0:
                return
            if code != GONE:
                raise SystemExit(f"a run ended with {code}:\n{self.log.read_text()[-4000:]}")
            check_saves(Path(config.run.output))
            self.must_succeed(self.start(config))
            self.check(kind, Path(config.run.output))
            shutil.rmtree(config.run.output)
            yield at
            at += stride


class ChaosOfRanks(Chaos):
    """The same with several ranks, of which one is killed, or the process of its engine, or their launcher."""

    def __init__(self, home: Path, engine: str, seed: int, ranks: int):
        super().__init__(home, engine, seed)
        self.ranks, self.pids = ranks, Pids()
        self.to_the_bit = self.runs = 0
        self._values: dict[str, dict[str, object]] = {}  # of each run, by its directory

    def start(self, config: Config, dying_at: int = 0) -> int:
        self.pids.clear()
        values = self._values[config.run.output]

        def begin(rank: int) -> None:
            self.pids.enter(rank)
            if rank == 0:
                self.watched.begin()

        return in_a_child(lambda: launch(self.ranks, [*options(values), "--resume=auto"], begin), output=self.log)

    def config(self, kind: str, output: Path) -> Config:
        changes = {**COMMON, **self.kinds[kind], **self.engine, "run__output": output, "run__hang_after": 40}
        self._values[str(output)] = settings(self.home, **changes)
        return configure(self.home, **changes)

    def kill(self, child: int) -> str | None:
        ranks = self.pids.of(self.ranks)
        number = self.random.randrange(-1, len(ranks))
        victim, pid = (" (the launcher)", child) if number < 0 else (f" (rank {number})", ranks[number])
        engines = [engine for rank in ranks for engine in children_of(rank)]
        if engines and self.random.random() < 0.2:
            victim, pid = " (an engine)", self.random.choice(engines)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return None if end_of(child, [*self.pids.of(self.ranks), *engines]) == 0 else victim

    def check(self, kind: str, output: Path) -> None:
        expected = self.undisturbed(kind)[0]
        first, second = tensors_of(newest_save(expected)), tensors_of(newest_save(output))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            if name.startswith(("policy", "adapter", "trainer/tensors")):
                torch.testing.assert_close(second[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
        assert [line["step"] for line in metrics_of(output)] == [line["step"] for line in metrics_of(expected)]
        self.runs += 1
        with contextlib.suppress(AssertionError):
            check_same(expected, output)
            self.to_the_bit += 1


def check_saves(run: Path) -> None:
    """Every save with a final name is whole, and what the run shows as its policy is there."""
    for save in (run / "checkpoints").glob("step-*"):
        if not save.name.endswith((".new", ".old")):
            verify(save)
    if (run / "policy").is_symlink() and not (run / "policy" / "config.json").exists():
        raise SystemExit(f"{run / 'policy'} names what is not there")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("local", "vllm"), default="local")
    parser.add_argument("--every-operation", action="store_true", help="kill at each file operation instead")
    parser.add_argument("--first", type=int, default=1, help="of the operations")
    parser.add_argument("--stride", type=int, default=1, help="between the operations")
    parser.add_argument("--ranks", type=int, default=1, help="of each run")
    options = parser.parse_args()
    if options.ranks > 1 and options.every_operation:
        parser.error("--ranks goes with random kills alone")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastflow-chaos-") as folder:
        home = Path(folder)
        several = ChaosOfRanks(home, options.engine, options.seed, options.ranks) if options.ranks > 1 else None
        chaos = several or Chaos(home, options.engine, options.seed)
        hits: collections.Counter[str] = collections.Counter()
        try:
            if options.every_operation:
                kind = list(chaos.kinds)[options.seed % len(chaos.kinds)]
                for at in chaos.every_operation(kind, options.first, options.stride):
                    hits["operations"] += 1
                    print(f"killed at operation {at} ({kind})", file=sys.stderr, flush=True)
            else:
                for number, hit in enumerate(chaos.random_kills(options.kills), start=1):
                    hits[hit] += 1
                    print(f"kill {number} of {options.kills}: {hit}", file=sys.stderr, flush=True)
        except (AssertionError, Exception) as failure:
            print(f"after {sum(hits.values())} kills: {type(failure).__name__}: {failure}")
            return 1
    where = ", ".join(f"{count} {phase}" for phase, count in hits.most_common())
    how = "to the bit" if several is None else f"within 1e-6, {several.to_the_bit} of {several.runs} runs to the bit"
    print(f"{sum(hits.values())} kills ({where}), all resumed {how}, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
