"""Fused ops between a language-model head and a loss: tensors in, tensors out, no model, no trainer.

    linear_logprob   log-probability of one target per row of hidden states, for any upstream gradient
    flow_loss        the sequence-level trajectory-balance loss, its gradient taken in the same pass over the
                     vocabulary
    explain          which implementation a call would take, and why
    on_block         have a function called at every block of rows, for those who watch that a long call moves on

With `statistics=True` both ops also report each token's entropy, logsumexp and mean logit, from the same pass over the
vocabulary. Neither op ever holds the (rows, vocabulary) matrix of logits. Both are operators of torch
(torch.ops.fastflow), so torch.compile takes them into its graphs whole.

These modules are public, too, by the names in their `__all__`; all others may change without notice:

    `fastflow_kernels.reference`    the two ops in plain PyTorch: their meaning, and what the tests compare with
    `fastflow_kernels.sampling`     logits of a few rows, and the weights that a sampler draws from
    `fastflow_kernels.memory`       the memory that a call will take
    `fastflow_kernels.cpu.native`   whether the CPU's native library is loaded, and why not
"""

from fastflow_kernels.blocks import on_block
from fastflow_kernels.flow_loss import flow_loss
from fastflow_kernels.implementation import explain
from fastflow_kernels.linear_logprob import linear_logprob
from fastflow_kernels.reference import FlowLoss, TokenStatistics
from fastflow_kernels.shard import VocabularyShard

__all__ = ["FlowLoss", "TokenStatistics", "VocabularyShard", "explain", "flow_loss", "linear_logprob", "on_block"]


def __dir__() -> list[str]:
    """What completion offers: not the modules."""
    return __all__
