"""Fused ops between a language-model head and a loss: tensors in, tensors out, no model, no trainer.

    linear_logprob   log-probability of one target per row of hidden states, for any upstream gradient
    flow_loss        the sequence-level trajectory-balance loss, its gradient taken in the same pass over the
                     vocabulary
    explain          which implementation a call would take, and why

Both also report each token's entropy, logsumexp and mean logit where `statistics=True` asks for it, at no further pass.

Neither op ever holds the (rows, vocabulary) matrix of logits. `fastflow_kernels.reference` states the same two
functions in plain PyTorch; that is their meaning, and what the tests compare with. Both are operators of torch
(torch.ops.fastflow), so torch.compile takes them into its graphs whole.
"""

from fastflow_kernels.flow_loss import flow_loss
from fastflow_kernels.implementation import explain
from fastflow_kernels.linear_logprob import linear_logprob
from fastflow_kernels.reference import FlowLoss, TokenStatistics
from fastflow_kernels.shard import VocabularyShard

__all__ = ["FlowLoss", "TokenStatistics", "VocabularyShard", "explain", "flow_loss", "linear_logprob"]
