"""TRL's loss head over padded batches, as its trainers call it."""

import torch
from torch import Tensor

from bench.providers.provider import is_installed
from bench.providers.trl import CHUNK_VOCABULARY, chunked_logprob
from bench.steps.padding import PaddedBatch

IGNORED = -100


def trl_head(model: torch.nn.Module, hidden: Tensor, batch: PaddedBatch, trains: bool) -> Tensor:
    """(B, R) log-probs by ChunkedLogProbFunction, with the entropy that GRPO asks the policy for.

    Which places go through the head is TRL's choice: see leaves_places_out.
    """
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED)
    labels[:, : -batch.responses] = IGNORED
    hidden, labels = hidden[:, :-1], labels[:, 1:]
    mask = labels != IGNORED
    is_compact = leaves_places_out(hidden.device)
    values = chunked_logprob().apply(
        hidden[mask] if is_compact else hidden.reshape(-1, hidden.shape[-1]),
        model.lm_head.weight,
        None,
        labels[mask] if is_compact else labels.clamp(min=0).reshape(-1),
        1.0,
        CHUNK_VOCABULARY,
        None,
        1.0,
        ("log_probs", "entropy") if trains else ("log_probs",),
    )[0]
    if is_compact:
        logprobs = values.new_zeros(mask.shape).masked_scatter(mask, values)
    else:
        logprobs = values.view(mask.shape).masked_fill(~mask, 0)
    return logprobs[:, -batch.responses :]


def leaves_places_out(device: torch.device) -> bool:
    """Whether only the rows of response tokens are projected.

    Where it has its Triton kernel. Elsewhere, on the CPU, TRL projects all places of the batch, prompts and padding
    too, so that shapes stay the same.
    """
    return device.type == "cuda" and is_installed("triton")
