"""Run vLLM inside its process: the engine, the memory shared with the trainer, and the commands on both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastflow.rollout.vllm import cpu, messages
from fastflow.rollout.vllm.adapters import room_for
from fastflow.rollout.vllm.packed_experts import PackedExperts

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


class RequestRefused(Exception):
    """vLLM refuses a request; the engine is unchanged."""


class Engine:
    """Carries out one command at a time.

    pulse: (2,) int64 in shared memory, which shows the trainer progress: steps of work done, and responses finished.
    """

    def __init__(self, settings: messages.EngineSettings, pulse: torch.Tensor):
        from vllm.platforms import current_platform

        if current_platform.device_type != settings.device:
            raise RuntimeError(f"it is built for {current_platform.device_type}, the policy is on {settings.device}")
        from vllm import LLM

        if settings.device == "cpu":
            cpu.leave_weights_unpacked()
        self._llm = LLM(
            model=settings.model,
            load_format="dummy",  # the weights come through shared memory
            skip_tokenizer_init=not settings.tokenizer,
            dtype=settings.dtype,
            max_model_len=settings.context,
            max_num_seqs=settings.max_sequences,
            gpu_memory_utilization=settings.memory_fraction,
            **(cpu.options(settings) if settings.device == "cpu" else _on_gpu(settings)),
            **(_with_adapters(settings) if settings.lora_rank else {}),
            enable_prefix_caching=not settings.carries_state,  # a state is kept at few places, and not on a CPU
            enable_sleep_mode=settings.sleeps,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # the requests alone decide how they are sampled
            disable_log_stats=True,
        )
        self._device = settings.device
        self._pulse = pulse.numpy()
        self._blocks: tuple[torch.Tensor, ...] = ()
        self._rounds: tuple[tuple[messages.Place, ...], ...] = ()
        self._loaded: set[str] = set()
        self._experts = PackedExperts()
        self._requests = 0
        self._adapters: LoRARequest | None = None  # which all requests use

    def attach(self, message: messages.Attach) -> None:
        self._blocks, self._rounds = message.blocks, message.rounds

    def action(self, message: messages.Command) -> tuple[messages.Activity, Callable[[], messages.Reply]]:
        """Return the name of what a command does, and the function that does it and returns the reply."""
        actions: dict[type, tuple[messages.Activity, Callable[[Any], messages.Reply]]] = {
            messages.Load: ("loading", self._load),
            messages.Adopt: ("loading", self._adopt),
            messages.Commit: ("loading", self._commit),
            messages.Probe: ("probing", self._probe),
            messages.Sample: ("sampling", self._sample),
            messages.Sleep: ("sleeping", self._sleep),
            messages.Wake: ("waking", self._wake),
        }
        what, function = actions[type(message)]
        return what, lambda: function(message)

    def _load(self, message: messages.Load) -> messages.Done:
        """Load the weights of a round through vLLM's own loader, which splits and joins them for its layers."""
        weights = {
            place.name: self._blocks[place.block][place.offset : place.offset + place.shape.numel()].view(place.shape)
            for place in self._rounds[message.round]
        }
        if self._device == "cpu" and any(".experts." in name for name in weights):
            self._llm.apply_model(self._experts.unpack)
        (loaded,) = self._llm.apply_model(lambda model: model.load_weights(iter(weights.items())))
        self._loaded |= {_without_wrapper(name) for name in loaded}
        if self._device == "cuda":  # the trainer may change the weights once they are read, not before
            torch.cuda.synchronize()
        self._beat()
        return messages.Done()

    def _adopt(self, message: messages.Adopt) -> messages.Done:
        from vllm.lora.request import LoRARequest

        self._llm.llm_engine.add_lora(LoRARequest("policy", 1, message.directory, load_inplace=True))
        if 1 not in self._llm.llm_engine.list_loras():
            raise RuntimeError("it did not take the adapters")
        self._adapters = LoRARequest("policy", 1, message.directory)
        return messages.Done()

    def _commit(self, message: messages.Commit) -> messages.Done:
        self._llm.apply_model(self._experts.pack)
        (parameters,) = self._llm.apply_model(
            lambda model: {_without_wrapper(name) for name, _ in model.named_parameters()}
        )
        missing = [] if message.is_partial else sorted(parameters - self._loaded)
        self._loaded = set()
        if missing:
            raise RuntimeError(f"its model has {len(missing)} parameters that got no weights, {missing[0]} among them")
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("its cache of prompts, computed with the old weights, could not be emptied")
        return messages.Done()

    def _probe(self, message: messages.Probe) -> messages.Probed:
        (output,) = self._generate([(list(message.ids), _probe_params())])
        return messages.Probed(_prompt_logprobs(output))

    def _sleep(self, message: messages.Sleep) -> messages.Done:
        self._llm.sleep(level=message.level)
        return messages.Done()

    def _wake(self, message: messages.Wake) -> messages.Done:
        self._llm.wake_up(tags=[message.tag])
        return messages.Done()

    def _sample(self, message: messages.Sample) -> messages.Sampled:
        common = _sampling_params(message)
        requests = [(list(message.probe), _probe_params())]
        for owner, seed in zip(message.owner.tolist(), message.seed.tolist(), strict=True):
            params = copy.copy(common)
            params.seed, params.max_tokens = seed, message.limits[owner]
            requests.append((message.prompts[owner].tolist(), params))
        probe, *responses = self._generate(requests)
        return _sampled([response.outputs[0] for response in responses], _prompt_logprobs(probe))

    def _generate(self, requests: list[tuple[list[int], Any]]) -> list[Any]:
        """Return vLLM's output for each (prompt, parameters), in order; the pulse moves meanwhile."""
        engine, first = self._llm.llm_engine, self._requests
        outputs: dict[int, Any] = {}
        try:
            for ids, params in requests:
                self._add(ids, params)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        outputs[int(output.request_id) - first] = output
                        self._pulse[1] += output.prompt_logprobs is None  # the probe is no response
                self._beat()
        except Exception:
            engine.abort_request([str(number) for number in range(first, self._requests)])
            raise
        return [outputs[number] for number in range(len(requests))]

    def _add(self, ids: list[int], params: Any) -> None:
        try:
            self._llm.llm_engine.add_request(
                str(self._requests), {"prompt_token_ids": ids}, params, lora_request=self._adapters
            )
        except Exception as error:
            raise RequestRefused(str(error)) from error
        self._requests += 1

    def _beat(self) -> None:
        self._pulse[0] += 1


def _without_wrapper(name: str) -> str:
    """Return a parameter's name without the layer that vLLM wraps around its own to apply adapters."""
    return name.replace(".base_layer.", ".")


def _with_adapters(settings: messages.EngineSettings) -> dict[str, Any]:
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": room_for(settings.lora_rank),
        "lora_target_modules": list(settings.lora_targets),  # without the head: a probe needs all its rows
    }


def _on_gpu(settings: messages.EngineSettings) -> dict[str, Any]:
    """Return options for a GPU. The kernels of Triton read experts as they are loaded; others reorder them once."""
    return {"moe_backend": "triton"} if settings.has_experts else {}


def _sampling_params(message: messages.Sample) -> SamplingParams:
    """Return vLLM's sampling parameters without a seed."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    settings = message.params
    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        max_tokens=settings.max_response_tokens,
        min_tokens=settings.min_response_tokens,
        stop_token_ids=list(message.end_ids),
        stop=list(settings.stop),
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(settings.stop),
        skip_special_tokens=False,  # stop texts may contain them: see response_text
        spaces_between_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _probe_params() -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0)


def _prompt_logprobs(output: Any) -> tuple[float, ...]:
    """Return the log-probs of the prompt's tokens after the first."""
    found = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
    return tuple(entry[token].logprob for entry, token in found)


def _sampled(outputs: list[Any], probe_logprobs: tuple[float, ...]) -> messages.Sampled:
    for output in outputs:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"a response ended with {output.finish_reason!r}")

    def joined(parts: list[Any], dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype=dtype) for part in parts)])

    return messages.Sampled(
        ids=joined([output.token_ids for output in outputs], np.int64),
        logprobs=joined([output.logprobs.logprobs for output in outputs], np.float32),
        length=np.array([len(output.token_ids) for output in outputs], dtype=np.int64),
        stopped=np.array([output.finish_reason == "stop" for output in outputs], dtype=bool),
        probe_logprobs=probe_logprobs,
    )
