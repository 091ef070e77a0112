"""TRL's chunked log-probs: vendor products of tiles, folded by a Triton kernel, recomputed in the backward pass."""

import contextlib
import functools
import sys
import types

from torch import Tensor

from bench.ops import TokenLogprob
from bench.providers.provider import Provider, Unavailable, from_tokens, import_below, recomputing

CHUNK_VOCABULARY = 32768  # vocabulary entries of one tile, as TRL's trainers pass them


@functools.cache
def chunked_logprob() -> type:
    """TRL's autograd function (hidden, weight, bias, targets, temperature, chunk, softcap, scale, outputs).

    It is imported without what `import trl` pulls in (accelerate, datasets, pandas). Its backward pass asks
    trl.trainer.utils for the context that gathers a head which DeepSpeed shards; a module with that one function stands
    in, since no head is sharded here. Raises Unavailable where trl is not installed or its kernels have moved.
    """
    utils = types.ModuleType("trl.trainer.utils")
    utils.maybe_gather_lm_head_ctx = lambda *parameters: contextlib.nullcontext()
    sys.modules.setdefault(utils.__name__, utils)
    try:
        return import_below("trl", "trainer", "trl.kernels").ChunkedLogProbFunction
    except (ImportError, AttributeError) as missing:
        raise Unavailable(f"this trl has no chunked log-probs, which came with 1.16: {missing}") from missing


def _load() -> TokenLogprob:
    function = chunked_logprob()

    def logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return function.apply(hidden, weight, None, targets, 1.0, CHUNK_VOCABULARY, None, 1.0, ("log_probs",))[0]

    return logprob


PROVIDERS = (
    Provider(
        "trl",
        from_tokens(_load),
        flops=recomputing(),
        note="ChunkedLogProbFunction with its trainers' chunk, log-probs alone; gradients summed in float32. On the "
        "CPU its gradients are products of float32 whatever the type, and torch takes the place of its kernel.",
        packages=("trl", "transformers"),
        cpu_peak=False,  # loads transformers
    ),
)
