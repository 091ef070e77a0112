"""Plain torch: the logits materialised, compiled, or recomputed chunk by chunk."""

import torch
from torch import Tensor

from bench.providers.provider import BFLOAT16, MATERIALISING, Provider, from_tokens, recomputing

CHUNK_LOGIT_BYTES = 2**28  # float32 logits of one chunk


def _logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits in the type of the inputs, softmax in float32."""
    logits = (hidden @ weight.t()).float()
    return torch.log_softmax(logits, dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)


def _float32_logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _logprob(hidden.float(), weight.float(), targets)


def _checkpointed_logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    rows = max(1, CHUNK_LOGIT_BYTES // (4 * weight.shape[0]))
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(_logprob, rows, weight, part, use_reentrant=False) for rows, part in chunks])


def _compiled():
    torch._dynamo.reset()  # each group compiles for its own sizes
    return torch.compile(_logprob, dynamic=False)


PROVIDERS = (
    Provider(
        "eager",
        from_tokens(lambda: _logprob),
        flops=MATERIALISING,
        note="All logits at once, in the type of the inputs; float32 softmax; differentiated by autograd.",
    ),
    Provider(
        "eager_float32",
        from_tokens(lambda: _float32_logprob),
        flops=MATERIALISING,
        note="The same with hidden states and head raised to float32 first.",
        devices=("cpu",),
        dtypes=BFLOAT16,
    ),
    Provider(
        "checkpoint_chunks",
        from_tokens(lambda: _checkpointed_logprob),
        flops=recomputing(),
        note="Chunks of rows under torch.utils.checkpoint; autograd sums their gradients of the head in its type.",
    ),
    Provider(
        "compile",
        from_tokens(_compiled),
        flops=MATERIALISING,
        note="torch.compile of eager.",
        in_quick=False,
        cpu_peak=False,
    ),
)
