"""Write the completion request for one response, and read the response from its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastflow.data.trajectory import Trajectory
from fastflow.errors import FastflowError
from fastflow.rollout.sampler import SamplingParams
from fastflow.rollout.server.client import Unreachable

ROUNDING = 1e-3  # nats; a log-prob may exceed 0 by so little
OTHER_MODEL = "serve the model that is trained"
PROXY = "check that vLLM itself listens there"
MODE = "it was probably started without --logprobs-mode processed_logprobs"


def request_body(
    model: str, prompt_ids: Sequence[int], seed: int, params: SamplingParams, eos_ids: Sequence[int]
) -> dict[str, Any]:
    """Return a request that sets all that shapes the distribution and leaves nothing to generation_config.json."""
    return {
        "model": model,
        "prompt": list(prompt_ids),
        "seed": seed,
        "max_tokens": params.max_response_tokens,
        "min_tokens": params.min_response_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # the server's end token; the policy's follow
        "stop_token_ids": list(eos_ids),
        "stop": list(params.stop),
        "skip_special_tokens": False,  # stop texts may contain them: see response_text
        "spaces_between_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


def trajectory_of(
    answer: Any, *, address: str, seed: int, params: SamplingParams, eos_ids: Sequence[int], vocabulary: int,
    weight_version: int,
) -> Trajectory:  # fmt: skip
    """Return the response as a trajectory.

    params: those of the request. vocabulary: the policy's tokens are those below.

    Raises FastflowError for a response that cannot be used. Raises Unreachable for one that the server cut off, as it
    does when another run changes its weights.
    """

    def unusable(reason: str) -> FastflowError:
        return FastflowError(f"the server at {address} gave a response {reason}")

    try:
        (choice,) = answer["choices"]
        finish_reason = choice["finish_reason"]
        if finish_reason not in ("stop", "length"):
            raise Unreachable(f"the server at {address} ended a response by {finish_reason!r}")
        ids = np.asarray(list(choice["token_ids"]))
        logprobs = np.asarray(choice["logprobs"]["token_logprobs"], dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise unusable("without token ids and their log-probs; fastflow needs vLLM 0.32") from error
    if ids.ndim != 1 or not len(ids) or ids.shape != logprobs.shape:
        raise unusable(f"with {logprobs.size} log-probs for {ids.size} tokens; fastflow needs vLLM 0.32")
    if ids.dtype.kind != "i" or ids.min() < 0 or ids.max() >= vocabulary:
        strange = next((one for one in ids.tolist() if type(one) is not int or not 0 <= one < vocabulary), ids)
        raise unusable(f"with token {strange!r:.50}, and the policy's are 0 to {vocabulary - 1}; {OTHER_MODEL}")
    if len(ids) > params.max_response_tokens:
        raise unusable(f"of {len(ids)} tokens where {params.max_response_tokens} are the most; {PROXY}")
    unlike = logprobs[~(np.isfinite(logprobs) & (logprobs <= ROUNDING))]
    if len(unlike):
        raise unusable(f"with a log-prob of {unlike[0]:.4g}, and each is finite and at most 0; {MODE}")
    if finish_reason == "stop" and not params.stop and ids[-1] not in eos_ids:
        raise unusable(
            f"that ended at token {ids[-1]}, which is not one of the policy's end tokens; start it with "
            "--generation-config vllm"
        )
    if params.temperature == 0:
        logprobs = np.zeros_like(logprobs)
    return Trajectory(ids.astype(np.int64), logprobs, finish_reason, seed=seed, weight_version=weight_version)
