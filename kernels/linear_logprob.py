"""Per-token log-probs under a language-model head, for any upstream gradient, without the (N, V) logits.

Forward: one block of logits at a time, 2 N D V flops; nothing is kept but the inputs. Backward: the same
block again, turned in place into the direction of its gradient (row_pass.py), times the upstream gradient of
each row: 6 N D V more, 8 in all. Where the upstream gradient is known before the head runs, as in
`flow_loss`, the 2 N D V of the second projection are saved.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from fastflow_kernels.autograd import finished, refuse_create_graph, without_autocast
from fastflow_kernels.blocks import default_block_rows, row_blocks
from fastflow_kernels.head_gradient import HeadGradient
from fastflow_kernels.matmul import accumulator_dtype, as_factor, back_project, project
from fastflow_kernels.row_pass import row_pass_
from fastflow_kernels.validate import check_block_rows, check_head, check_positive


def linear_logprob(
    hidden: Tensor,  # (N, D) float
    weight: Tensor,  # (V, D) same type
    targets: Tensor,  # (N,) int64 or int32, in [0, V)
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,  # (V,) same type
    block_rows: int | None = None,
) -> Tensor:
    """log softmax((hidden @ weight^T + bias) / temperature) at the targets.

    Args:
        hidden: final hidden states, one row per response token.
        weight: weight of the head; need not be contiguous, but then it is copied for the call.
        temperature: divides the logits; above 0.
        block_rows: rows whose logits exist at a time; changes memory and speed, not the answer.

    Returns:
        Log-probs in nats, (N,), never above 0: float64 for float64 inputs, else float32, taken from float32
        accumulators also when the inputs are in half precision. Gradient flows to hidden, weight and bias; it
        is summed in float32 (float64) and rounded to the type of the input once. It cannot be differentiated
        a second time (RuntimeError).

    Raises:
        TypeError, ValueError: an input has the wrong type, shape, device or range.

    >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0], [0.0, 7.0]])
    >>> linear_logprob(hidden, weight, torch.tensor([0]))  # both logits are 0: log(1/2)
    tensor([-0.6931])
    """
    check_head(hidden, weight, targets, bias)
    check_positive("temperature", temperature)
    check_block_rows(block_rows)
    block_rows = block_rows or default_block_rows(weight.shape[0], hidden.device.type)
    return _LinearLogprob.apply(hidden, weight, bias, targets.long(), float(temperature), block_rows)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        block_rows: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature = temperature
        ctx.block_rows = block_rows
        with without_autocast(hidden.device):
            return logprobs(hidden, weight, bias, targets, temperature, block_rows)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_logprob: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph("linear_logprob")
        hidden, weight, bias, targets = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        with without_autocast(hidden.device):
            d_hidden, head = logprob_gradients(
                grad_logprob,
                hidden,
                weight,
                bias,
                targets,
                ctx.temperature,
                ctx.block_rows,
                need_hidden=need_hidden,
                head=HeadGradient(
                    weight,
                    need_weight=need_weight,
                    need_bias=need_bias,
                    dtype=accumulator_dtype(hidden.dtype),
                ),
            )
            d_weight, d_bias = head.finish()
            dtype = hidden.dtype
            return (
                finished(d_hidden, dtype),
                finished(d_weight, dtype),
                finished(d_bias, dtype),
                None,
                None,
                None,
            )


def _logits_buffer(row_count: int, weight: Tensor, block_rows: int) -> Tensor:
    """The one block of logits (at most block_rows, V) that every block of the call is computed in."""
    return weight.new_empty(min(row_count, block_rows), weight.shape[0], dtype=accumulator_dtype(weight.dtype))


def logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, block_rows: int
) -> Tensor:
    """The forward pass: (N,) log-probs."""
    head_weight, rows_in = as_factor(weight), as_factor(hidden)
    buffer = _logits_buffer(hidden.shape[0], weight, block_rows)
    head_bias = None if bias is None else bias.detach().to(buffer.dtype)
    logprob = buffer.new_empty(hidden.shape[0])
    for rows in row_blocks(hidden.shape[0], block_rows):
        block = buffer[: rows.stop - rows.start]
        project(rows_in[rows], head_weight, head_bias, block, scale=1.0 / temperature)
        logprob[rows], _ = row_pass_(block, targets[rows])
    return logprob


def logprob_gradients(
    grad_logprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    block_rows: int,
    *,
    need_hidden: bool,
    head: HeadGradient,
) -> tuple[Tensor | None, HeadGradient]:
    """The backward pass: d_hidden (N, D), and the gradient of the head summed into `head`."""
    head_weight, rows_in = as_factor(weight), as_factor(hidden)
    buffer = _logits_buffer(hidden.shape[0], weight, block_rows)
    head_bias = None if bias is None else bias.detach().to(buffer.dtype)
    d_hidden = torch.empty_like(rows_in, dtype=buffer.dtype) if need_hidden else None
    for rows in row_blocks(hidden.shape[0], block_rows):
        block = buffer[: rows.stop - rows.start]
        project(rows_in[rows], head_weight, head_bias, block, scale=1.0 / temperature)
        _, row_factor = row_pass_(block, targets[rows])
        row_scale = row_factor * grad_logprob[rows] / temperature
        if d_hidden is not None:
            back_project(block, head_weight, out=d_hidden[rows]).mul_(row_scale.unsqueeze(1))
        if head.is_needed():
            head.add_rows(block, row_scale, rows_in[rows])
    return d_hidden, head
