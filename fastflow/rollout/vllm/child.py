"""The vLLM process: builds the engine, then obeys the trainer until its pipe closes.

vLLM runs inside this process, without an engine process of its own: ready in seconds, and a death is seen at once.
Whatever it prints goes to the log file.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

from fastflow.rollout.vllm import messages

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, unless the user has set it
}


def main(pipe: Connection, settings: messages.EngineSettings) -> None:
    """Never raises: what goes wrong is said over the pipe, and ends the process where it cannot go on."""
    _print_to(settings.log)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        engine = Engine(settings)
        pipe.send(messages.Ready())
        while True:
            try:
                reply = engine.obey(pipe.recv(), pipe)
            except (EOFError, KeyboardInterrupt):
                return  # the trainer is gone, or going
            if reply is not None:
                pipe.send(reply)
    except BrokenPipeError:
        return
    except BaseException as error:
        import traceback

        traceback.print_exc()
        pipe.send(messages.Failed(f"{type(error).__name__}: {error}".splitlines()[0]))


def _print_to(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)


class Engine:
    """vLLM's engine and the memory that the trainer shares."""

    def __init__(self, settings: messages.EngineSettings):
        if settings.device == "cpu":
            import vllm._custom_ops as operations

            operations._supports_onednn = False  # its packed linears drop the parameters that weights are loaded into
        from vllm import LLM

        self._llm = LLM(
            model=settings.model,
            load_format="dummy",  # the weights come through shared memory
            skip_tokenizer_init=True,
            dtype=settings.dtype,
            max_model_len=settings.context,
            max_num_seqs=settings.max_sequences,
            gpu_memory_utilization=settings.memory_fraction,
            enforce_eager=settings.device == "cpu",
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
        )
        self._shares: list[messages.Share] = []
        self._requests = 0

    def obey(self, message: object, pipe: Connection) -> object | None:
        if isinstance(message, messages.Share):
            self._shares.append(message)
            return None
        if isinstance(message, messages.Load):
            self._load()
            return messages.Loaded(self._probe(message.probe))
        return messages.Sampled(self._sample(message, pipe))

    def _load(self) -> None:
        """Through vLLM's own loader, which splits and packs them; then nothing of the old weights is left."""
        weights = {
            place.name: share.memory[place.offset : place.offset + place.shape.numel()].view(place.shape)
            for share in self._shares
            for place in share.places
        }
        (missing,) = self._llm.apply_model(lambda model: load_into(model, weights))
        if missing:
            raise RuntimeError(f"vLLM's model took no weights for {', '.join(sorted(missing)[:3])}")
        self._llm.reset_prefix_cache()

    def _probe(self, ids: tuple[int, ...]) -> tuple[float, ...]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0)
        (output,) = self._llm.generate([{"prompt_token_ids": list(ids)}], params, use_tqdm=False)
        found = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        return tuple(entry[token].logprob for entry, token in found)

    def _sample(self, message: messages.Sample, pipe: Connection) -> tuple[messages.Response, ...]:
        from vllm import SamplingParams

        engine, settings = self._llm.llm_engine, message.params
        place = {}
        for number, (prompt, seed) in enumerate(message.items):
            params = SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_response_tokens,
                seed=seed,
                stop_token_ids=list(message.stop_ids),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            self._requests += 1
            place[str(self._requests)] = number
            engine.add_request(str(self._requests), {"prompt_token_ids": list(prompt)}, params)
        responses: dict[int, messages.Response] = {}
        while engine.has_unfinished_requests():
            ended = [output for output in engine.step() if output.finished]
            for output in ended:
                responses[place[output.request_id]] = _response(output.outputs[0])
            if ended:
                pipe.send(messages.Progress(len(ended)))
        return tuple(responses[number] for number in range(len(message.items)))


def load_into(model: Any, weights: dict) -> set[str]:
    """Loads, and returns the parameters of vLLM's model that nothing was loaded into."""
    loaded = model.load_weights(iter(weights.items()))
    return {name for name, _ in model.named_parameters()} - set(loaded)


def _response(output: Any) -> messages.Response:
    import numpy as np

    return messages.Response(
        ids=np.asarray(output.token_ids, dtype=np.int64),
        logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),
        finish_reason="stop" if output.finish_reason == "stop" else "length",
    )
