"""Count the memory of one of several ranks that keep the head cut (model.head = cut): what replaces the whole head.

Each rank multiplies the response rows of all ranks by its rows of the head. So a block of logits and all that has the
head's size are 1 / N of what they were, and hidden states and their gradient N times. These rows are formulas.
"""

from __future__ import annotations

from dataclasses import replace

from fastflow.config.schema import Config
from fastflow.counted import sized
from fastflow.errors import FastflowError
from fastflow.models.cut.head import CUT, check_rows, rows_of_each
from fastflow.plan.device import Device
from fastflow.plan.lengths import sequences_at_once
from fastflow.plan.rows import BACKWARD, EMBEDDING, FORWARD, LOSS, SAMPLING, Part, Row
from fastflow.plan.sizes import ModelSizes
from fastflow.plan.trainer_rows import loss_rows, microbatch_tokens, numbers_of, parameter_bytes

FLOAT = 4


def is_cut(config: Config, device: Device) -> bool:
    return config.model.head == CUT and device.count > 1


def ranks_of_a_head(config: Config, device: Device) -> int:
    """Return how many ranks keep a head together: those of one replica."""
    return device.count // config.run.replicas


def cut_head_rows(rows: list[Row], config: Config, model: ModelSizes, device: Device) -> list[Row]:
    """Turn the rows of a rank with a whole head into those of one with the largest part of it."""
    count = ranks_of_a_head(config, device)
    most = max(rows_of_each(model.vocab_size, count))
    tokens, numbers = microbatch_tokens(config), numbers_of(config, model, device)
    own = loss_rows(config, replace(model, vocab_size=most), device, tokens=count * tokens)
    cut = (Part.HEAD, Part.EMBEDDING) if model.tied else (Part.HEAD,)
    summed = FLOAT if numbers.product < FLOAT else 0  # apart from the gradient, which is rounded at the end
    kept = [row for row in rows if row.part not in cut]
    own_sum, note = tokens * model.hidden * FLOAT, f"{FLOAT} B of them below"
    changed = [
        replace(row, bytes=row.bytes - own_sum, how=f"{row.how}, {note}") if row.part is Part.HIDDEN_STATES else row
        for row in kept
    ]
    changed += [
        replace(row, how=f"{row.how}; {most:,} of {model.vocab_size:,} entries") for row in own if row.part in cut
    ]
    rows_of_all, shown = count * tokens * model.hidden, f"{count} x {tokens:,} tokens x {model.hidden:,}"
    changed += [
        Row("hidden states of all ranks", "trainer", rows_of_all * (numbers.product + summed),
            f"{shown} x {numbers.product + summed} B", (LOSS,)),
        Row("gradient of all ranks' hidden states", "trainer", rows_of_all * numbers.product,
            f"{shown} x {numbers.product} B", (LOSS, BACKWARD)),
    ]  # fmt: skip
    if model.tied:
        each = parameter_bytes(config)
        changed.append(
            Row("rows of the embedding on their way", "trainer", 3 * tokens * model.hidden * each,
                f"3 x {tokens:,} tokens x {model.hidden:,} x {each} B", (FORWARD, EMBEDDING)),
        )  # fmt: skip
    if any(row.part is Part.SAMPLED_LOGITS for row in rows):
        sequences = sequences_at_once(config, device.count)
        changed.append(
            Row("logits on their way between ranks", "trainer", 2 * sequences * model.vocab_size * FLOAT,
                f"2 x {sequences:,} sequences x {model.vocab_size:,} entries x {FLOAT} B", (SAMPLING,)),
        )  # fmt: skip
    return changed


def head_remarks(
    config: Config, model: ModelSizes, base: ModelSizes | None, device: Device
) -> tuple[list[str], list[str]]:
    """Return a remark on the rows of the head that a rank keeps, or the obstacle to that."""
    if not is_cut(config, device):
        return [], []
    try:
        count = ranks_of_a_head(config, device)
        check_rows(config.model.path, model.vocab_size, count)
        if base is not None:
            check_rows(config.model.base or config.model.path, base.vocab_size, count)
    except FastflowError as error:
        return [], [str(error)]
    most = max(rows_of_each(model.vocab_size, count))
    bytes_ = sized(most * model.hidden * parameter_bytes(config))
    return [
        f"model.head = cut: each rank keeps at most {most:,} of the head's {model.vocab_size:,} rows, {bytes_} of the "
        "policy's parameters, and gathers the hidden states of all responses in a micro-batch"
    ], []
