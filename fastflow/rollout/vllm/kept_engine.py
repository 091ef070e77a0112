"""Keep a vLLM process running with the policy's weights, and put a new one in its place where it is lost."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.vllm import messages
from fastflow.rollout.vllm.adapters import adapter_tensors, write_adapters
from fastflow.rollout.vllm.process import EngineLost, EngineProcess
from fastflow.rollout.vllm.weights import SharedWeights

logger = logging.getLogger(__name__)


class KeptEngine:
    """A vLLM process that has the policy's weights, from `start` until `close`.

    settings: of the process. weights: the memory by which it gets them. folder: where adapters are written. startup,
    silence: seconds after which a starting process, and a running one without progress, counts as hung. restarts:
    maximum consecutive restarts. on_progress: receives how many more responses have finished, less than none where
    those of a lost process are sampled again.

    Where the policy is cut over ranks, each rank keeps a process of its own, and `start`, `load`, `fall_asleep` and
    `mend` are collectives. What happens to one process is noted by `attempt`, so that its rank goes on gathering
    weights for the others until all come to `mend`.
    """

    def __init__(
        self,
        policy: PackedModel,
        settings: messages.EngineSettings,
        weights: SharedWeights,
        folder: Path,
        *,
        startup: float,
        silence: float,
        restarts: int,
        on_progress: Callable[[int], None],
    ):
        self.weights = weights
        self.weight_version = policy.version
        self.is_asleep = False
        self._policy, self._ranks = policy, policy.ranks
        self._settings, self._folder = settings, folder
        self._startup, self._silence, self._restarts = startup, silence, restarts
        self._on_progress = on_progress
        self._process: EngineProcess | None = None
        self._trouble: EngineLost | FastflowError | None = None
        self._losses = self._finished = self._adapter_loads = 0
        self._is_complete = False  # whether the engines of all ranks hold what training does not change

    @property
    def process(self) -> EngineProcess:
        if self._process is None:
            raise RuntimeError("the engine was not started yet")
        return self._process

    def start(self, prove: Callable[[], None]) -> None:
        """Start the first process with the policy's weights. prove: checks that it holds them, by `attempt`.

        A process that is lost before that is not replaced.
        """
        self.attempt(self._start)
        self._load(is_complete=False)
        prove()
        if isinstance(loss := self._trouble, EngineLost):
            self._trouble = FastflowError(f"{loss}; sample with --rollout.engine local, or see `fastflow doctor`")
        self.mend()
        self._is_complete = True

    def load(self) -> None:
        """Have the process take the policy's weights of now. A process that sleeps is woken for it."""
        self._load(is_complete=self._is_complete)
        self.mend()
        self._is_complete = True

    def fall_asleep(self, level: messages.SleepLevel) -> None:
        """Have the process give its memory back, until weights are loaded."""

        def sleep() -> None:
            if not self.is_asleep:
                self._ask(messages.Sleep(level))
                self.is_asleep = True

        self.attempt(sleep)
        while self.mend():
            self.attempt(sleep)
        self._is_complete = self._is_complete and level == 1

    def attempt(self, act: Callable[[], None]) -> None:
        """Do something with this rank's process, and note its trouble. In trouble, nothing more is asked of it."""
        if self._trouble is None:
            try:
                act()
            except (EngineLost, FastflowError) as trouble:
                self._trouble = trouble

    def mend(self) -> bool:
        """Replace processes that are lost, on whichever rank, by new ones with the policy's weights of now.

        Returns whether there were any. Raises FastflowError, on all ranks, for trouble that no new process mends, and
        after too many losses in a row.
        """
        had_lost = False
        while self._someone_lost():
            had_lost = True
            loss, self._trouble = self._trouble, None
            if loss is not None:
                self.attempt(self._replace)
            self._load(is_complete=False, serves=loss is not None)
        return had_lost

    def count_anew(self) -> None:
        """Forget the finished responses, which are handed out or given up, and are not sampled again."""
        self._finished = 0

    def forget_losses(self) -> None:
        """Begin the count of consecutive losses again, since the process has done its work."""
        self._losses = 0

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Say of what is refused in the block on which of several ranks it was."""
        try:
            yield
        except FastflowError as error:
            if self._ranks.count == 1:
                raise
            raise FastflowError(f"rank {self._ranks.rank}: {error}") from error

    def close(self) -> None:
        if self._process is not None:
            self._process.end()

    def _start(self) -> None:
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()  # vLLM plans with what is free
        self._process = EngineProcess(
            self._settings, startup=self._startup, silence=self._silence, on_progress=self._advance
        )
        self._process.send(self.weights.attach)
        self.is_asleep = False

    def _replace(self) -> None:
        self.process.end()
        self._advance(-self._finished)
        self._start()

    def _load(self, *, is_complete: bool, serves: bool = True) -> None:
        """Load the weights of now into this rank's engine. is_complete: see `due`. serves: otherwise it only helps
        others to gather them.
        """

        def ask(act: Callable[[], None]) -> None:
            if serves:
                self.attempt(act)

        if self.is_asleep:
            ask(lambda: self._wake("weights"))
        due = self.weights.due(is_complete=is_complete)
        for round in due:
            self.weights.prepare(round)
            ask(functools.partial(self._ask, messages.Load(round)))
        if self._settings.lora_rank:
            tensors = adapter_tensors(self._policy)
            ask(lambda: self._load_adapters(tensors))
        ask(lambda: self._ask(messages.Commit(is_partial=len(due) < self.weights.rounds)))
        if self.is_asleep:
            ask(lambda: self._wake("kv_cache"))
        if serves and self._trouble is None:
            self.is_asleep, self.weight_version = False, self._policy.version

    def _load_adapters(self, tensors: dict[str, torch.Tensor]) -> None:
        self._adapter_loads += 1
        directory = self._folder / f"adapters-{self._adapter_loads}"
        self._ask(messages.Adopt(str(write_adapters(self._policy, directory, tensors))))
        shutil.rmtree(directory)

    def _wake(self, tag: messages.MemoryTag) -> None:
        torch.cuda.empty_cache()  # vLLM needs the memory that the trainer does not use
        self._ask(messages.Wake(tag))

    def _ask(self, message: messages.Command) -> None:
        self.process.send(message)
        self.process.wait_for(messages.Done)

    def _someone_lost(self) -> bool:
        """Return whether a rank has lost its process; say on the first rank what was lost, and is restarted."""
        loss, refusal, said = self._trouble, None, ""
        if isinstance(loss, EngineLost):
            self._losses += 1
            if self._losses > self._restarts:
                refusal = FastflowError(
                    f"{loss}; that was loss {self._losses} in a row, and rollout.restarts = {self._restarts} allows no "
                    "other restart: see `fastflow doctor`, or sample with --rollout.engine local"
                )
            else:
                said = (
                    f"{loss}\nvLLM is restarted ({self._losses} of at most {self._restarts} in a row); the new process "
                    "samples the same requests again, with the same seeds, from the policy's current weights"
                )
        elif isinstance(loss, FastflowError):
            refusal = loss
        with self._ranks.together(), self.named():
            if refusal is not None:
                self._trouble = None
                raise refusal
        told = self._ranks.gather(said)
        for rank, words in enumerate(told):
            if words and self._ranks.is_first:
                logger.warning("%s", f"rank {rank}: {words}" if self._ranks.count > 1 else words)
        return any(told)

    def _advance(self, finished: int) -> None:
        self._finished += finished
        self._on_progress(finished)
