"""Per-token log-probs under a language-model head, for any upstream gradient, without the (N, V) logits.

The forward pass makes one block of logits at a time, 2 N D V flops, and keeps nothing but the inputs. The backward pass
makes the same block again, turns it in place into the direction of its gradient (row_statistics.py), and multiplies it
by the upstream gradient of each row: 6 N D V more, 8 in all. Where the upstream gradient is known before the head runs,
as in `flow_loss`, the 2 N D V of the second projection are saved.

Entropy, logsumexp and mean logit need two more sums over a row in the same sweep (moments.py). A gradient of the
entropy or the logsumexp tilts the direction (tilt.py): the same backward pass with other numbers in the block. Where
the block's logits are kept, their largest and their sums are taken first, in sweeps. `fused` keeps none: for a gradient
of the entropy in float32 it takes the sums by 2 N D V more, and in half precision it takes those of the forward pass.
"""

from typing import Literal, overload

from jaxtyping import Float, Int
from torch import Tensor

from fastflow_kernels import linear_logprob_operator
from fastflow_kernels.reference import TokenStatistics
from fastflow_kernels.shard import VocabularyShard
from fastflow_kernels.validate import checked_head_arguments, host_numbers


@overload
def linear_logprob(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = ...,
    bias: Float[Tensor, " V"] | None = ...,
    softcap: float | None = ...,
    vocabulary: int | None = ...,
    shard: VocabularyShard | None = ...,
    block_rows: int | None = ...,
    block_bytes: int | None = ...,
    statistics: Literal[False] = ...,
) -> Float[Tensor, " N"]: ...


@overload
def linear_logprob(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    *,
    temperature: float = ...,
    bias: Float[Tensor, " V"] | None = ...,
    softcap: float | None = ...,
    vocabulary: int | None = ...,
    shard: VocabularyShard | None = ...,
    block_rows: int | None = ...,
    block_bytes: int | None = ...,
    statistics: Literal[True],
) -> tuple[Float[Tensor, " N"], TokenStatistics]: ...


def linear_logprob(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],  # int64 or int32, in [0, V)
    *,
    temperature: float = 1.0,
    bias: Float[Tensor, " V"] | None = None,
    softcap: float | None = None,
    vocabulary: int | None = None,
    shard: VocabularyShard | None = None,
    block_rows: int | None = None,
    block_bytes: int | None = None,
    statistics: bool = False,
) -> Float[Tensor, " N"] | tuple[Float[Tensor, " N"], TokenStatistics]:
    """Compute log softmax(softcap(hidden @ weight^T + bias) / temperature) at the targets.

    Args:
        hidden: final hidden states, one row per response token.
        weight: weight of the head. Its type may differ from that of hidden, float64 apart: they are multiplied in the
            narrower, or in autocast's. One that is not contiguous or is converted is copied; each call keeps its copy
            until its backward pass.
        temperature: divides the logits; above 0.
        softcap: bounds the logits ahead of the temperature, x -> softcap tanh(x / softcap); above 0, or None.
        vocabulary: true size of the vocabulary, where the weight is padded beyond it: the rows from there on
            take no part and get gradient 0. None: all rows.
        shard: where each rank of a group holds a part of the weight's rows; see VocabularyShard.
        block_rows: rows whose logits exist at a time; changes memory and speed, not the answer.
        block_bytes: memory of these logits, where block_rows is None. None: on CUDA 1 GiB, or the size of a float32
            gradient of the head where that is more; larger blocks are taken where they need less memory in all.
        statistics: also returns each row's entropy, logsumexp and mean logit, from the same pass over the
            vocabulary. With shards those of the whole vocabulary, on every rank.

    Returns:
        Log-probs in nats, (N,), never above 0: float64 for float64 inputs, else float32, taken from float32
        accumulators also when the inputs are in half precision; a CPU's products in bfloat16 round all logits but
        the targets' (see matmul.py). Gradient flows to hidden, weight and bias; it is summed in float32
        (float64) and rounded to the type of the input at the end. It cannot be differentiated
        a second time (RuntimeError).
        With `statistics`, a pair of these log-probs and TokenStatistics. Its entropy and logsumexp carry gradient,
        too, also together with the log-probs' in one backward; its mean_logit carries none.

    Raises:
        TypeError, ValueError: an input has the wrong type, shape, device or range.
        RuntimeError: FASTFLOW_KERNELS forces an implementation that cannot serve the call.

    >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0], [0.0, 7.0]])
    >>> linear_logprob(hidden, weight, torch.tensor([0]))  # both logits are 0: log(1/2)
    tensor([-0.6931])
    >>> logprob, statistics = linear_logprob(hidden, weight, torch.tensor([0]), statistics=True)
    >>> statistics.entropy
    tensor([0.6931])
    """
    head = checked_head_arguments(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        vocabulary=vocabulary,
        shard=shard,
        block_rows=block_rows,
        block_bytes=block_bytes,
    )
    logprob, *found = linear_logprob_operator.operator(
        **head, temperature=host_numbers(temperature), statistics=statistics
    )
    return (logprob, TokenStatistics(*found)) if statistics else logprob
