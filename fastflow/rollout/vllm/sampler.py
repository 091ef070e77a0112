"""Sample with vLLM in a child process: load weights, send requests, return groups, and replace a lost process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastflow.data.trajectory import Group, Trajectory, flatten
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import visible_gpu
from fastflow.models.rope import for_vllm
from fastflow.rollout import probe
from fastflow.rollout.admission import check_requests
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.shares import exchange, share_of
from fastflow.rollout.vllm import messages
from fastflow.rollout.vllm.adapters import adapter_tensors, applies_adapters, rank_of, targets_of, write_adapters
from fastflow.rollout.vllm.gathered import GatheredWeights
from fastflow.rollout.vllm.process import EngineLost, EngineProcess
from fastflow.rollout.vllm.weights import SharedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SLEEP_LEVELS: dict[str, messages.SleepLevel | None] = {"off": None, "weights-to-cpu": 1, "drop-weights": 2}


class VllmSampler:
    """Samples with vLLM in a child process, from weights that both processes see.

    eos_ids: tokens that end a response. context: maximum tokens of prompt and response together. tokenizer: needed for
    stop texts only. sleep: what the engine frees between `finish` and `load_weights`; see SLEEP_LEVELS. startup:
    seconds after which a starting child counts as hung. silence: the same for a running child without progress.
    restarts: maximum consecutive restarts of a lost child; the new one samples the step again with the same seeds.
    adapters: whether LoRA adapters are merged into vLLM's weights or applied by vLLM; see applies_adapters.

    Where the policy is cut over ranks, each rank has a sampler with a child of its own, and every method but `close` is
    a collective. What happens to one child is noted in `_trouble`, so that its rank goes on gathering weights for the
    others until all come to `_mend`.
    """

    def __init__(
        self,
        policy: PackedModel,
        *,
        eos_ids: Sequence[int],
        context: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_sequences: int = 256,
        memory_fraction: float = 0.4,
        sleep: str = "off",
        startup: float = 900.0,
        silence: float = 300.0,
        restarts: int = 3,
        adapters: str = "auto",
        on_progress: Callable[[int], None] | None = None,
    ):
        self._policy, self._ranks = policy, policy.ranks
        self._trouble: EngineLost | FastflowError | None = None
        self._eos_ids = tuple(sorted(eos_ids))
        self._restarts, self._losses = restarts, 0
        self._on_progress = on_progress or (lambda finished: None)
        self._finished = 0
        self._weight_version = policy.version
        self._has_tokenizer = tokenizer is not None
        self._requests: Sequence[Request] = ()
        self._share: Sequence[Request] = ()  # of this rank
        self._params = SamplingParams()
        self._probe = probe.probe_for(policy, context)
        self._probe_logprobs = np.empty(0)
        self._dtype = torch.bfloat16 if policy.autocast else next(policy.causal_lm.parameters()).dtype
        self._sleep_level, self._asleep = SLEEP_LEVELS[sleep], False
        self._adapter_loads = 0
        self._is_complete = False  # whether the engines of all ranks hold what training does not change
        with self._ranks.together():
            check_installed()
            self._check_device(sleep)
            self._applies_adapters = applies_adapters(policy, adapters, self._dtype)
        self._weights = self._hold_weights()
        with self._ranks.together():
            self._folder = tempfile.TemporaryDirectory(prefix="fastflow-vllm-")
            self._write_model(tokenizer)
        settings = messages.EngineSettings(
            model=self._folder.name,
            dtype=str(self._dtype).removeprefix("torch."),
            context=max(context, len(self._probe) + 1),
            max_sequences=max_sequences,
            device=policy.device.type,
            threads=torch.get_num_threads(),
            memory_fraction=memory_fraction,
            tokenizer=self._has_tokenizer,
            sleeps=self._sleep_level is not None,
            log=str(Path(self._folder.name) / "vllm.log"),
            lora_rank=rank_of(policy) if self._applies_adapters else 0,
            lora_targets=targets_of(policy) if self._applies_adapters else (),
            gpu=visible_gpu(policy.device.index) if policy.device.index is not None and self._is_shared else None,
        )
        self._settings, self._startup, self._silence = settings, startup, silence
        self._process: EngineProcess | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._start_up()
            undo.pop_all()

    def load_weights(self, policy: PackedModel) -> None:
        """Have vLLM take the weights of the policy that the sampler was made for. The next sample proves it."""
        if policy is not self._policy:
            raise ValueError("a VllmSampler serves the policy that it was made for, whose memory it shares")
        self._load(is_complete=self._is_complete)
        self._mend()
        self._is_complete = True

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return one group per request.

        Raises FastflowError for a request that cannot be served, after too many losses of the process, and where vLLM's
        log-probs of a probe, computed with the responses, are not the trainer's.
        """
        self.begin(requests, params)
        return self.finish()

    def begin(self, requests: Sequence[Request], params: SamplingParams) -> None:
        with self._ranks.together():
            check_requests(self._policy, requests, params)
            if params.stop and not self._has_tokenizer:
                raise FastflowError("stop texts need a tokenizer; give VllmSampler the policy's")
        if self._asleep:
            self.load_weights(self._policy)
        self._requests, self._params, self._finished = requests, params, 0
        self._share = share_of(requests, self._ranks)
        self._on_engine(self._send_requests)
        self._probe_logprobs = probe.logprobs_of(self._policy, self._probe)  # while vLLM samples

    def finish(self) -> list[Group]:
        sampled: messages.Sampled | None = None

        def take() -> None:
            nonlocal sampled
            try:
                sampled = self._engine.wait_for(messages.Sampled)
            except KeyboardInterrupt:
                self._engine.end()  # its reply must not be taken for that of the next request
                raise

        self._on_engine(take)
        while self._mend():
            if sampled is None:
                self._on_engine(self._send_requests)
            logprobs = probe.logprobs_of(self._policy, self._probe)
            if sampled is None:
                self._probe_logprobs = logprobs
                self._on_engine(take)
        assert sampled is not None  # or there would have been something to mend
        self._losses = self._finished = 0
        with self._ranks.together(), self._named():
            self._check_agreement(sampled.probe_logprobs)
        groups = exchange(self._requests, self._groups(sampled), self._ranks)
        self._on_progress(len(flatten(groups)) - len(sampled.length))  # what other ranks have sampled
        if self._sleep_level:
            self._fall_asleep(self._sleep_level)
        return groups

    def close(self) -> None:
        if self._process is not None:
            self._process.end()
        self._folder.cleanup()

    @property
    def _engine(self) -> EngineProcess:
        if self._process is None:
            raise RuntimeError("the sampler has no engine yet")
        return self._process

    @property
    def _is_shared(self) -> bool:
        """Whether the policy is cut over several ranks."""
        return self._ranks.count > 1

    def _check_device(self, sleep: str) -> None:
        device = self._policy.device
        if self._sleep_level and device.type == "cpu":
            raise FastflowError(f"rollout.sleep = {sleep} frees nothing on a CPU; leave it at auto")
        if device.index and not self._is_shared:
            raise FastflowError(
                f"rollout.engine = vllm takes the first GPU it sees, and the policy is on {device}; set "
                f"CUDA_VISIBLE_DEVICES={device.index} and model.device = cuda"
            )

    def _hold_weights(self) -> SharedWeights | GatheredWeights:
        merge = not self._applies_adapters
        if not self._is_shared:
            return SharedWeights(self._policy, engine_dtype=self._dtype, merge=merge)
        return GatheredWeights(self._policy, engine_dtype=self._dtype, merge=merge)

    def _groups(self, sampled: messages.Sampled) -> list[Group]:
        ends = sampled.length.cumsum()[:-1]
        parts = zip(
            np.split(sampled.ids, ends), np.split(sampled.logprobs, ends), sampled.stopped.tolist(), strict=False
        )  # nothing sampled is one empty part

        def trajectory(seed: int) -> Trajectory:
            ids, logprobs, stopped = next(parts)
            return Trajectory(ids, logprobs, "stop" if stopped else "length", seed, self._weight_version)

        return [Group(request.prompt, tuple(trajectory(seed) for seed in request.seeds)) for request in self._share]

    def _send_requests(self) -> None:
        requests = self._share
        self._engine.send(
            messages.Sample(
                prompts=tuple(request.prompt.ids for request in requests),
                owner=np.repeat(np.arange(len(requests)), [len(request.seeds) for request in requests]),
                seed=np.array([seed for request in requests for seed in request.seeds], dtype=np.int64),
                params=self._params,
                end_ids=self._eos_ids,
                probe=tuple(self._probe.tolist()),
                limits=tuple(request.length_limit(self._params) for request in requests),
            )
        )

    def _start_up(self) -> None:
        """Start the first process with the policy's weights, and check that it holds them."""

        def check() -> None:
            self._check_agreement(self._engine.wait_for(messages.Probed).logprobs)

        self._on_engine(self._start)
        self._load(is_complete=False)
        self._on_engine(lambda: self._engine.send(messages.Probe(tuple(self._probe.tolist()))))
        self._probe_logprobs = probe.logprobs_of(self._policy, self._probe)
        self._on_engine(check)
        if isinstance(loss := self._trouble, EngineLost):
            self._trouble = FastflowError(f"{loss}; sample with --rollout.engine local, or see `fastflow doctor`")
        self._mend()
        self._is_complete = True

    def _start(self) -> None:
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()  # vLLM plans with what is free
        self._process = EngineProcess(
            self._settings, startup=self._startup, silence=self._silence, on_progress=self._advance
        )
        self._process.send(self._weights.attach)
        self._asleep = False

    def _load(self, *, is_complete: bool, serves: bool = True) -> None:
        """Load the weights of now into this rank's engine. is_complete: see `due`. serves: otherwise it only helps
        others to gather them.
        """

        def ask(act: Callable[[], None]) -> None:
            if serves:
                self._on_engine(act)

        if self._asleep:
            ask(lambda: self._wake("weights"))
        for round in self._weights.due(is_complete=is_complete):
            self._weights.prepare(round)
            ask(functools.partial(self._ask, messages.Load(round)))
        if self._applies_adapters:
            tensors = adapter_tensors(self._policy)
            ask(lambda: self._load_adapters(tensors))
        ask(lambda: self._ask(messages.Commit(is_partial=is_complete and self._is_shared)))
        if self._asleep:
            ask(lambda: self._wake("kv_cache"))
        if serves and self._trouble is None:
            self._asleep, self._weight_version = False, self._policy.version

    def _load_adapters(self, tensors: dict[str, torch.Tensor]) -> None:
        self._adapter_loads += 1
        directory = Path(self._folder.name) / f"adapters-{self._adapter_loads}"
        self._ask(messages.Adopt(str(write_adapters(self._policy, directory, tensors))))
        shutil.rmtree(directory)

    def _check_agreement(self, theirs: Sequence[float]) -> None:
        probe.check_agreement(
            theirs, self._probe_logprobs, dtype=self._dtype, engine="vLLM", version=self._weight_version
        )

    def _fall_asleep(self, level: messages.SleepLevel) -> None:
        def sleep() -> None:
            if not self._asleep:
                self._ask(messages.Sleep(level))
                self._asleep = True

        self._on_engine(sleep)
        while self._mend():
            self._on_engine(sleep)
        self._is_complete = self._is_complete and level == 1

    def _wake(self, tag: messages.MemoryTag) -> None:
        torch.cuda.empty_cache()  # vLLM needs the memory that the trainer does not use
        self._ask(messages.Wake(tag))

    def _ask(self, message: messages.Command) -> None:
        self._engine.send(message)
        self._engine.wait_for(messages.Done)

    def _on_engine(self, act: Callable[[], None]) -> None:
        """Do something with this rank's process, and note its trouble. In trouble, nothing more is asked of it."""
        if self._trouble is None:
            try:
                act()
            except (EngineLost, FastflowError) as trouble:
                self._trouble = trouble

    def _mend(self) -> bool:
        """Replace processes that are lost, on whichever rank, by new ones with the policy's weights of now.

        Returns whether there were any. Raises FastflowError, on all ranks, for trouble that no new process mends, and
        after too many losses in a row.
        """
        had_lost = False
        while self._someone_lost():
            had_lost = True
            loss, self._trouble = self._trouble, None
            if loss is not None:
                self._on_engine(self._replace)
            self._load(is_complete=False, serves=loss is not None)
        return had_lost

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
        with self._ranks.together(), self._named():
            if refusal is not None:
                self._trouble = None
                raise refusal
        told = self._ranks.gather(said)
        for rank, words in enumerate(told):
            if words and self._ranks.is_first:
                logger.warning("%s", f"rank {rank}: {words}" if self._is_shared else words)
        return any(told)

    def _replace(self) -> None:
        self._engine.end()
        self._advance(-self._finished)
        self._start()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say of what is refused in the block on which of several ranks it was."""
        try:
            yield
        except FastflowError as error:
            if not self._is_shared:
                raise
            raise FastflowError(f"rank {self._ranks.rank}: {error}") from error

    def _advance(self, finished: int) -> None:
        self._finished += finished
        self._on_progress(finished)

    def _write_model(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write what vLLM reads before it gets weights."""
        config = for_vllm(self._policy.causal_lm.config)
        config.architectures = [type(self._policy.causal_lm).__name__]
        config.eos_token_id = None  # the requests name their end tokens
        config.save_pretrained(self._folder.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(self._folder.name)


def check_installed() -> None:
    """Raise FastflowError where vllm is not installed. It is not imported: only the child does that."""
    if importlib.util.find_spec("vllm") is None:
        raise FastflowError(
            'rollout.engine = vllm needs the package vllm: pip install "fastflow[vllm]" on a GPU machine; `fastflow '
            "doctor` names the commands for a CPU"
        )
