"""The trainer's side of vLLM: starts the process, shares the weights, asks for samples, and never waits for ever."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

from fastflow.errors import FastflowError
from fastflow.models import PackedModel
from fastflow.packing import pack
from fastflow.rollout.local import check_room
from fastflow.rollout.sampler import Request, SamplingParams
from fastflow.rollout.vllm import child, messages
from fastflow.rollout.vllm.weights import SharedWeights
from fastflow.scoring import token_logprobs
from fastflow.trajectory import Group, Prompt, Trajectory

PROBE_TOKENS = 16
# Nats, of one token. Float32 agrees to 1e-4 in the tests; bfloat16 has not been measured.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
LOG_LINES = 5
CLOSING_SECONDS = 5.0


class VllmSampler:
    """Samples with vLLM in a child process, from weights that both processes see.

    eos_ids: tokens that end a response. context: tokens of prompt and response together, at most. silence: seconds
    without a sign of life after which the child counts as hung.
    """

    def __init__(
        self,
        policy: PackedModel,
        *,
        eos_ids: Sequence[int],
        context: int,
        max_sequences: int = 256,
        memory_fraction: float = 0.4,
        silence: float = 300.0,
        on_progress: Callable[[int], None] | None = None,
    ):
        check_installed()
        self._eos_ids = tuple(sorted(eos_ids))
        self._silence = silence
        self._probe_length = min(PROBE_TOKENS, context - 1)
        self._on_progress = on_progress or (lambda finished: None)
        self._weight_version = -1
        self._folder = tempfile.TemporaryDirectory(prefix="fastflow-vllm-")
        self._log = Path(self._folder.name) / "vllm.log"
        self._weights = SharedWeights(policy)
        self._dtype = torch.bfloat16 if policy.autocast else next(policy.causal_lm.parameters()).dtype
        config = policy.causal_lm.config
        config.architectures = [type(policy.causal_lm).__name__]
        config.save_pretrained(self._folder.name)
        settings = messages.EngineSettings(
            model=self._folder.name,
            dtype=str(self._dtype).removeprefix("torch."),
            context=context,
            max_sequences=max_sequences,
            device=policy.device.type,
            memory_fraction=memory_fraction,
            log=str(self._log),
        )
        spawn = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=child.main, args=(theirs, settings), daemon=True, name="fastflow-vllm")
        self._process.start()
        theirs.close()
        try:
            self._wait_for(messages.Ready)
            for share in self._weights.shares:
                self._send(share)
            self.load_weights(policy)
        except BaseException:
            self.close()
            raise

    def load_weights(self, policy: PackedModel) -> None:
        """vLLM takes the policy's weights; raises FastflowError where its log-probs then differ from the trainer's."""
        self._weights.update()
        probe = np.random.default_rng(0).integers(0, policy.vocab_size, self._probe_length)
        self._send(messages.Load(tuple(probe.tolist())))
        loaded = self._wait_for(messages.Loaded)
        self._weight_version += 1
        theirs, ours = np.array(loaded.probe_logprobs), self._probe(policy, probe)
        worst = int(np.abs(theirs - ours).argmax())
        if not abs(theirs[worst] - ours[worst]) <= TOLERANCE[self._dtype]:
            raise FastflowError(
                f"after weight load {self._weight_version}, vLLM gives token {worst + 1} of a probe the log-prob "
                f"{theirs[worst]:.4f} and the trainer {ours[worst]:.4f}: they do not hold the same model; sample with "
                "--rollout.engine local"
            )

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """One group per request. Raises FastflowError when the process dies, hangs or fails."""
        items = tuple((tuple(request.prompt.ids.tolist()), seed) for request in requests for seed in request.seeds)
        self._send(messages.Sample(items, params, self._eos_ids))
        responses = iter(self._wait_for(messages.Sampled).responses)
        return [
            Group(request.prompt, tuple(self._trajectory(next(responses), seed) for seed in request.seeds))
            for request in requests
        ]

    def close(self) -> None:
        """Ends the process, kindly first."""
        self._pipe.close()  # which it sees when it next listens
        self._process.join(CLOSING_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()

    def _trajectory(self, response: messages.Response, seed: int) -> Trajectory:
        return Trajectory(
            response_ids=response.ids,
            behaviour_logprobs=response.logprobs,
            finish_reason=response.finish_reason,
            seed=seed,
            weight_version=self._weight_version,
        )

    @staticmethod
    def _probe(policy: PackedModel, ids: np.ndarray) -> np.ndarray:
        """The trainer's log-probs of the tokens after the first."""
        rest = Trajectory(ids[1:], np.zeros(len(ids) - 1, dtype=np.float32), "length")
        (batch,) = pack([Group(Prompt(ids[:1]), (rest,))], tokens_per_microbatch=10**9)
        with torch.no_grad():
            return token_logprobs(policy, batch.to(policy.device)).double().cpu().numpy()

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death() from None

    def _wait_for(self, kind: type):
        """The next reply of this kind; signs of progress on the way."""
        while True:
            try:
                if not self._pipe.poll(self._silence):
                    raise FastflowError(
                        f"the vLLM process has given no sign of life for {self._silence:g} seconds; raise "
                        "rollout.silence if it was only slow, or sample with --rollout.engine local"
                        f"{self._last_words()}"
                    )
                message = self._pipe.recv()
            except (EOFError, ConnectionResetError):
                raise self._death() from None
            if isinstance(message, messages.Progress):
                self._on_progress(message.finished)
            elif isinstance(message, messages.Failed):
                raise FastflowError(f"vLLM failed: {message.reason}{self._last_words()}")
            elif isinstance(message, kind):
                return message

    def _death(self) -> FastflowError:
        self._process.join(CLOSING_SECONDS)
        return FastflowError(f"the vLLM process died with exit code {self._process.exitcode}{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return "".join(f"\n    {line}" for line in lines[-LOG_LINES:])


def check_installed() -> None:
    """Raises FastflowError without vllm; it is looked for and not imported, which only the child does."""
    if importlib.util.find_spec("vllm") is None:
        raise FastflowError('rollout.engine = vllm needs the package vllm: pip install "fastflow[vllm]"')


def context_for(policy: PackedModel, prompts: Sequence[Prompt], max_response_tokens: int) -> int:
    """Tokens of the longest prompt and its response, which the model must have room for."""
    check_room(policy, prompts, max_response_tokens)
    return max(len(prompt.ids) for prompt in prompts) + max_response_tokens
