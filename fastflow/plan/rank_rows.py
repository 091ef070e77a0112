"""Count the memory of one of several ranks: what FSDP divides among them, and what it gathers for a while.

Embedding, last norm and head are one group, whole during a micro-batch; a head that stays cut is not in it
(head_rows.py). A layer is whole while it runs, and the next one is gathered meanwhile. These rows are FSDP2's rules as
formulas; they have not been measured.
"""

from __future__ import annotations

from dataclasses import replace

from fastflow.config.schema import Config
from fastflow.counted import sized
from fastflow.plan.device import Device
from fastflow.plan.head_rows import cut_head_rows, is_cut
from fastflow.plan.rows import BACKWARD, EMBEDDING, FORWARD, LOSS, SAMPLING, Part, Row
from fastflow.plan.sizes import ModelSizes

GATHERED_LAYERS = 2
FLOAT = 4


def divide_rows(rows: list[Row], config: Config, model: ModelSizes, device: Device) -> list[Row]:
    """Turn the trainer's rows of one device into those of one of device.count ranks. With replicas, each of these is
    divided among its own ranks.
    """
    if device.count == 1:
        return rows
    count = device.count // config.run.replicas
    kept = [row for row in rows if row.part is not Part.COPIES]
    divided = [
        replace(row, bytes=-(-row.bytes // count), how=f"{row.how}; 1/{count} of it")
        if row.part in (Part.WEIGHTS, Part.TRAINED)
        else row
        for row in kept
    ]
    whole = 2 if config.model.dtype == "bfloat16" else FLOAT
    product = 2 if config.model.autocast else whole
    outer, layer, gathered_ends = outer_parameters(model), layer_parameters(model), "embedding and head"
    if is_cut(config, device):
        divided = cut_head_rows(divided, config, model, device)
        outer, gathered_ends = outer - model.vocab_size * model.hidden, "last norm" if model.tied else "embedding"
    gathered = [
        Row(f"{gathered_ends}, gathered", "trainer", outer * whole, f"{outer:,} x {whole} B, for a micro-batch",
            (SAMPLING, FORWARD, LOSS, BACKWARD, EMBEDDING)),
        Row("layers, gathered", "trainer", GATHERED_LAYERS * layer * product,
            f"{GATHERED_LAYERS} of {layer:,} x {product} B, one that runs and the next", (SAMPLING, FORWARD, BACKWARD)),
    ]  # fmt: skip
    if not config.lora.rank:
        gathered += [
            Row("gradient of one layer, before it is divided", "trainer", layer * (product + FLOAT),
                f"{layer:,} x {product} B, and {FLOAT} B to sum them", (BACKWARD,)),
            Row("buffer to sum the head's gradient", "trainer", outer * FLOAT, f"{outer:,} x {FLOAT} B", (EMBEDDING,)),
        ]  # fmt: skip
    return [*divided, *gathered]


def loading_obstacle(rows: list[Row], config: Config, device: Device) -> tuple[list[str], list[str]]:
    """Return a remark on what each rank loads before it is cut, or the obstacle that this is. Ranks read only what they
    keep of models whose code is transformers' own.

    rows: those of one device.
    """
    if device.count == 1 or not config.model.trust_remote_code:
        return [], []
    loaded = sum(row.bytes for row in rows if row.part is Part.WEIGHTS)
    said = f"where the model has code of its own, each rank loads it whole, {sized(loaded)}, before it keeps its part"
    if loaded > device.memory:
        return [], [f"{said}: more than the {sized(device.memory)} of a device"]
    return [said], []


def outer_parameters(model: ModelSizes) -> int:
    """Return the parameters outside of the layers: embedding, head unless it is tied, and last norm."""
    return model.vocab_size * model.hidden * (1 if model.tied else 2) + model.hidden


def layer_parameters(model: ModelSizes) -> int:
    return (model.parameters - outer_parameters(model)) // model.layers
