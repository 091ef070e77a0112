"""Sample with vLLM in a child process: send it requests, prove that it has the policy's weights, return groups."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastflow.data.trajectory import Group, Trajectory, flatten
from fastflow.errors import FastflowError
from fastflow.models.layers.experts import has_experts
from fastflow.models.layers.linear_attention import linear_attentions
from fastflow.models.layers.rope import for_vllm
from fastflow.models.packed import PackedModel
from fastflow.models.ranks import visible_gpu
from fastflow.rollout import probe
from fastflow.rollout.admission import check_requests
from fastflow.rollout.sampler import OnProgress, Request, SamplingParams, unheard
from fastflow.rollout.shares import exchange, share_of
from fastflow.rollout.vllm import messages
from fastflow.rollout.vllm.adapters import applies_adapters, rank_of, targets_of
from fastflow.rollout.vllm.kept_engine import KeptEngine
from fastflow.rollout.vllm.refusals import another_gpu, no_sleep
from fastflow.rollout.vllm.weights import SharedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLEEP_LEVELS: dict[str, messages.SleepLevel | None] = {"off": None, "weights-to-cpu": 1, "drop-weights": 2}


class VllmSampler:
    """Samples with vLLM in a child process, from weights that both processes see.

    eos_ids: tokens that end a response. context: maximum tokens of prompt and response together. tokenizer: needed for
    stop texts only. sleep: what the engine frees between `finish` and `load_weights`; see SLEEP_LEVELS. startup,
    silence, restarts: see KeptEngine; a new process samples the step again with the same seeds. adapters: whether LoRA
    adapters are merged into vLLM's weights or applied by vLLM; see applies_adapters.

    Where the policy is cut over ranks, each rank has a sampler with a process of its own, and every method but `close`
    is a collective.
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
        on_progress: OnProgress = unheard,
    ):
        self._policy, self._ranks = policy, policy.ranks
        self._eos_ids = tuple(sorted(eos_ids))
        self._on_progress = on_progress
        self._has_tokenizer = tokenizer is not None
        self._requests: Sequence[Request] = ()
        self._share: Sequence[Request] = ()  # of this rank
        self._params = SamplingParams()
        self._probe = probe.probe_for(policy, context)
        self._probe_logprobs = np.empty(0)
        self._dtype = policy.dtype
        self._sleep_level = SLEEP_LEVELS[sleep]
        with self._ranks.together():
            check_installed()
            self._check_device(sleep)
            applies = applies_adapters(policy, adapters, self._dtype)
        weights = SharedWeights(policy, engine_dtype=self._dtype, merge=not applies, gather=self._is_shared)
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
            lora_rank=rank_of(policy) if applies else 0,
            lora_targets=targets_of(policy) if applies else (),
            carries_state=bool(linear_attentions(policy.causal_lm)),
            has_experts=has_experts(policy.causal_lm.config),
            gpu=visible_gpu(policy.device.index) if policy.device.index is not None and self._is_shared else None,
        )
        self._engine = KeptEngine(
            policy, settings, weights, Path(self._folder.name), startup=startup, silence=silence, restarts=restarts,
            on_progress=self._on_progress,
        )  # fmt: skip
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._engine.start(self._prove)
            undo.pop_all()

    def load_weights(self, policy: PackedModel) -> None:
        """Have vLLM take the weights of the policy that the sampler was made for. The next sample proves it."""
        if policy is not self._policy:
            raise ValueError("a VllmSampler serves the policy that it was made for, whose memory it shares")
        self._engine.load()

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
        if self._engine.is_asleep:
            self._engine.load()
        self._requests, self._params = requests, params
        self._share = share_of(requests, self._ranks)
        self._engine.count_anew()
        self._engine.attempt(self._send_requests)
        self._probe_logprobs = probe.logprobs_of(self._policy, self._probe)  # while vLLM samples

    def finish(self) -> list[Group]:
        engine = self._engine
        sampled: messages.Sampled | None = None

        def take() -> None:
            nonlocal sampled
            try:
                sampled = engine.process.wait_for(messages.Sampled)
            except KeyboardInterrupt:
                engine.close()  # its reply must not be taken for that of the next request
                raise

        engine.attempt(take)
        while engine.mend():
            if sampled is None:
                engine.attempt(self._send_requests)
            logprobs = probe.logprobs_of(self._policy, self._probe)
            if sampled is None:
                self._probe_logprobs = logprobs
                engine.attempt(take)
        assert sampled is not None  # or there would have been something to mend
        engine.forget_losses()
        engine.count_anew()
        with self._ranks.together(), engine.named():
            self._check_agreement(sampled.probe_logprobs)
        groups = exchange(self._requests, self._groups(sampled), self._ranks)
        self._on_progress(len(flatten(groups)) - len(sampled.length))  # what other ranks have sampled
        if self._sleep_level:
            engine.fall_asleep(self._sleep_level)
        return groups

    def close(self) -> None:
        self._engine.close()
        self._folder.cleanup()

    @property
    def _is_shared(self) -> bool:
        """Whether the policy is cut over several ranks."""
        return self._ranks.count > 1

    def _check_device(self, sleep: str) -> None:
        device = self._policy.device
        refusal = no_sleep(sleep, device.type) or ("" if self._is_shared else another_gpu(device.type, device.index))
        if refusal:
            raise FastflowError(refusal)

    def _write_model(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Write what vLLM reads before it gets weights."""
        config = for_vllm(self._policy.causal_lm.config)
        config.architectures = [type(self._policy.causal_lm).__name__]
        config.eos_token_id = None  # the requests name their end tokens
        config.save_pretrained(self._folder.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(self._folder.name)

    def _send_requests(self) -> None:
        requests = self._share
        self._engine.process.send(
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

    def _groups(self, sampled: messages.Sampled) -> list[Group]:
        ends, version = sampled.length.cumsum()[:-1], self._engine.weight_version
        parts = zip(
            np.split(sampled.ids, ends), np.split(sampled.logprobs, ends), sampled.stopped.tolist(), strict=False
        )  # nothing sampled is one empty part

        def trajectory(seed: int) -> Trajectory:
            ids, logprobs, stopped = next(parts)
            return Trajectory(ids, logprobs, "stop" if stopped else "length", seed, version)

        return [Group(request.prompt, tuple(trajectory(seed) for seed in request.seeds)) for request in self._share]

    def _prove(self) -> None:
        """Check that a process which has just started holds the policy's weights."""
        engine = self._engine

        def check() -> None:
            self._check_agreement(engine.process.wait_for(messages.Probed).logprobs)

        engine.attempt(lambda: engine.process.send(messages.Probe(tuple(self._probe.tolist()))))
        self._probe_logprobs = probe.logprobs_of(self._policy, self._probe)
        engine.attempt(check)

    def _check_agreement(self, theirs: Sequence[float]) -> None:
        version = self._engine.weight_version
        probe.check_agreement(theirs, self._probe_logprobs, dtype=self._dtype, engine="vLLM", version=version)


def check_installed() -> None:
    """Raise FastflowError where vllm is not installed. It is not imported: only the child does that."""
    if importlib.util.find_spec("vllm") is None:
        raise FastflowError(
            'rollout.engine = vllm needs the package vllm: pip install "fastflow[vllm]" on a GPU machine; `fastflow '
            "doctor` names the commands for a CPU"
        )
