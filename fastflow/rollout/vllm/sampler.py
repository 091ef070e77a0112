"""Sample with vLLM in a child process: load weights, send requests, return groups, and replace a lost process."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastflow.data.trajectory import Group, Trajectory
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.rope import for_vllm
from fastflow.rollout import probe
from fastflow.rollout.admission import check_requests
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.vllm import messages
from fastflow.rollout.vllm.adapters import applies_adapters, rank_of, targets_of, write_adapters
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
        check_installed()
        self._sleep_level, self._asleep = SLEEP_LEVELS[sleep], False
        if self._sleep_level and policy.device.type == "cpu":
            raise FastflowError(f"rollout.sleep = {sleep} frees nothing on a CPU; leave it at auto")
        if policy.device.index:
            raise FastflowError(
                f"rollout.engine = vllm takes the first GPU it sees, and the policy is on {policy.device}; set "
                f"CUDA_VISIBLE_DEVICES={policy.device.index} and model.device = cuda"
            )
        self._policy = policy
        self._eos_ids = tuple(sorted(eos_ids))
        self._restarts, self._losses = restarts, 0
        self._on_progress = on_progress or (lambda finished: None)
        self._finished = 0
        self._weight_version = policy.version
        self._has_tokenizer = tokenizer is not None
        self._requests: Sequence[Request] = ()
        self._params = SamplingParams()
        self._probe = probe.probe_for(policy, context)
        self._probe_logprobs = np.empty(0)
        self._dtype = torch.bfloat16 if policy.autocast else next(policy.causal_lm.parameters()).dtype
        self._applies_adapters = applies_adapters(policy, adapters, self._dtype)
        self._adapter_loads = 0
        self._weights = SharedWeights(policy, engine_dtype=self._dtype, merge=not self._applies_adapters)
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
        )
        self._settings, self._startup, self._silence = settings, startup, silence
        with contextlib.ExitStack() as undo:
            undo.callback(self._folder.cleanup)
            try:
                self._process = self._start()
                undo.callback(self._process.end)
                self._attach_and_load()
                self._process.send(messages.Probe(tuple(self._probe.tolist())))
                self._probe_logprobs = probe.logprobs_of(policy, self._probe)
                self._check_agreement(self._process.wait_for(messages.Probed).logprobs)
            except EngineLost as loss:
                raise FastflowError(f"{loss}; sample with --rollout.engine local, or see `fastflow doctor`") from loss
            undo.pop_all()

    def load_weights(self, policy: PackedModel) -> None:
        """Have vLLM take the weights of the policy that the sampler was made for. The next sample proves it."""
        if policy is not self._policy:
            raise ValueError("a VllmSampler serves the policy that it was made for, whose memory it shares")
        try:
            self._load()
        except EngineLost as loss:
            self._replace(loss)

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return one group per request.

        Raises FastflowError for a request that cannot be served, after too many losses of the process, and where vLLM's
        log-probs of a probe, computed with the responses, are not the trainer's.
        """
        self.begin(requests, params)
        return self.finish()

    def begin(self, requests: Sequence[Request], params: SamplingParams) -> None:
        check_requests(self._policy, requests, params)
        if params.stop and not self._has_tokenizer:
            raise FastflowError("stop texts need a tokenizer; give VllmSampler the policy's")
        if self._asleep:
            self.load_weights(self._policy)
        self._requests, self._params, self._finished = requests, params, 0
        message = messages.Sample(
            prompts=tuple(request.prompt.ids for request in requests),
            owner=np.repeat(np.arange(len(requests)), [len(request.seeds) for request in requests]),
            seed=np.array([seed for request in requests for seed in request.seeds], dtype=np.int64),
            params=params,
            end_ids=self._eos_ids,
            probe=tuple(self._probe.tolist()),
            limits=tuple(request.length_limit(params) for request in requests),
        )
        with contextlib.suppress(EngineLost):  # `finish` finds the process lost too, and replaces it
            self._process.send(message)
        self._probe_logprobs = probe.logprobs_of(self._policy, self._probe)  # while vLLM samples

    def finish(self) -> list[Group]:
        while True:
            try:
                sampled = self._process.wait_for(messages.Sampled)
                break
            except EngineLost as loss:
                self._replace(loss)
                self.begin(self._requests, self._params)
            except KeyboardInterrupt:
                self._process.end()  # its reply must not be taken for that of the next request
                raise
        self._losses = self._finished = 0
        self._check_agreement(sampled.probe_logprobs)
        groups = self._groups(sampled)
        if self._sleep_level:
            self._fall_asleep(self._sleep_level)
        return groups

    def close(self) -> None:
        self._process.end()
        self._folder.cleanup()

    def _groups(self, sampled: messages.Sampled) -> list[Group]:
        ends = sampled.length.cumsum()[:-1]
        parts = zip(
            np.split(sampled.ids, ends), np.split(sampled.logprobs, ends), sampled.stopped.tolist(), strict=True
        )

        def trajectory(seed: int) -> Trajectory:
            ids, logprobs, stopped = next(parts)
            return Trajectory(ids, logprobs, "stop" if stopped else "length", seed, self._weight_version)

        return [Group(request.prompt, tuple(trajectory(seed) for seed in request.seeds)) for request in self._requests]

    def _start(self) -> EngineProcess:
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()  # vLLM plans with what is free
        return EngineProcess(self._settings, startup=self._startup, silence=self._silence, on_progress=self._advance)

    def _attach_and_load(self) -> None:
        self._process.send(self._weights.attach)
        self._asleep = False
        self._load()

    def _load(self) -> None:
        if self._asleep:
            self._wake("weights")
        for round in range(self._weights.rounds):
            self._weights.prepare(round)
            self._ask(messages.Load(round))
        if self._applies_adapters:
            self._load_adapters()
        self._ask(messages.Commit())
        if self._asleep:
            self._wake("kv_cache")
            self._asleep = False
        self._weight_version = self._policy.version

    def _load_adapters(self) -> None:
        self._adapter_loads += 1
        directory = write_adapters(self._policy, Path(self._folder.name) / f"adapters-{self._adapter_loads}")
        self._ask(messages.Adopt(str(directory)))
        shutil.rmtree(directory)

    def _check_agreement(self, theirs: Sequence[float]) -> None:
        probe.check_agreement(
            theirs, self._probe_logprobs, dtype=self._dtype, engine="vLLM", version=self._weight_version
        )

    def _fall_asleep(self, level: messages.SleepLevel) -> None:
        while not self._asleep:
            try:
                self._ask(messages.Sleep(level))
                self._asleep = True
            except EngineLost as loss:
                self._replace(loss)

    def _wake(self, tag: messages.MemoryTag) -> None:
        torch.cuda.empty_cache()  # vLLM needs the memory that the trainer does not use
        self._ask(messages.Wake(tag))

    def _ask(self, message: messages.Command) -> None:
        self._process.send(message)
        self._process.wait_for(messages.Done)

    def _replace(self, loss: EngineLost) -> None:
        """Start a new process with the policy's weights. Raises FastflowError after too many losses in a row."""
        while True:
            self._process.end()
            self._losses += 1
            if self._losses > self._restarts:
                raise FastflowError(
                    f"{loss}; that was loss {self._losses} in a row, and rollout.restarts = {self._restarts} allows no "
                    "other restart: see `fastflow doctor`, or sample with --rollout.engine local"
                ) from loss
            logger.warning(
                "%s\nvLLM is restarted (%d of at most %d in a row); the new process samples the same requests again, "
                "with the same seeds, from the policy's current weights", loss, self._losses, self._restarts,
            )  # fmt: skip
            self._advance(-self._finished)
            try:
                self._process = self._start()
                self._attach_and_load()
                return
            except EngineLost as again:
                loss = again

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
