"""Count the trainer's memory, row by row."""

from __future__ import annotations

import torch

from fastflow.config.methods import OFFLINE
from fastflow.config.schema import Config
from fastflow.models.layers import attention
from fastflow.models.layers.decoder_layers import recomputed_layers
from fastflow.models.layers.fused_layers import LIGER, choose_layers
from fastflow.models.layers.linear_attention import has_fused_rule
from fastflow.models.layers.residual_stream import BFLOAT16
from fastflow.objectives.log_z import LearnedLogZ
from fastflow.plan import activations
from fastflow.plan.device import GIB, Device
from fastflow.plan.lengths import Sampled, longest_sequence, most
from fastflow.plan.rows import BACKWARD, EMBEDDING, FORWARD, LOSS, SAMPLING, TRAINING, Part, Row, of_part
from fastflow.plan.sizes import Adapters, ModelSizes
from fastflow.plan.stand_ins import SHARING_VARLEN, WIDE_SDPA
from fastflow_kernels.memory import Workspace, cpu_block_rows, cpu_multiplies_bfloat16, flow_loss_workspace

FLOAT = 4
ONEDNN_BYTES = int(0.6 * GIB)  # of 1,024 bfloat16 products of different sizes, which is as many as it keeps
CONTEXT_BYTES = {"cuda": int(0.6 * GIB), "cpu": int(0.4 * GIB)}  # of one process; the second was measured


def trainer_rows(
    config: Config, model: ModelSizes, base: ModelSizes | None, adapters: Adapters | None, device: Device
) -> list[Row]:
    """Return the trainer's rows.

    base: None where the policy is its own base, or nobody reads one. adapters: None where all parameters are trained.
    """
    rows = [*_weights(config, model, base, adapters), *_optimiser(config, model, adapters, device)]
    rows += _forward_and_backward(config, model, device)
    rows += loss_rows(config, model, device, tokens=microbatch_tokens(config))
    if config.rollout.engine == "local" and config.objective.name not in OFFLINE:
        rows += _local_sampler(config, model, device)
    if model.experts and not device.is_gpu and numbers_of(config, model, device).product < FLOAT:
        rows.append(Row("oneDNN's code for experts", "trainer", ONEDNN_BYTES, "measured, for each number of rows anew"))
    return [row for row in [*rows, context_row("trainer", device)] if row.bytes]


def context_row(side: str, device: Device) -> Row:
    what = "CUDA context of the process" if device.is_gpu else "Python and its libraries"
    return Row(what, side, CONTEXT_BYTES[device.type], "an assumption, not computed")


def microbatch_tokens(config: Config) -> int:
    """Return the tokens of the largest micro-batch: a longer sequence has its own, and an update may have fewer."""
    batch, longest = config.batch, longest_sequence(config)
    of_update = batch.prompts_per_step // batch.updates_per_rollout * batch.responses_per_prompt * longest
    return min(max(batch.tokens_per_microbatch, longest), of_update)


def numbers_of(config: Config, model: ModelSizes, device: Device) -> activations.Numbers:
    """Return the types and layers of this configuration's forward pass on this device."""
    settings, bfloat16 = config.model, config.model.dtype == "bfloat16"
    product = torch.bfloat16 if bfloat16 or settings.autocast else torch.float32
    kernel = attention.choose_kernel(settings.attention, torch.device(device.type), product)
    if device.is_gpu and kernel == "sdpa" and product == torch.float32:
        kernel = WIDE_SDPA
    elif kernel == "varlen" and attention.varlen_shares_heads():
        kernel = SHARING_VARLEN
    layers = choose_layers(
        settings.fused_layers,
        torch.device(device.type),
        suitable=model.fusable,
        compiled=settings.compile == "layers",
    )
    return activations.Numbers(
        bfloat16=bfloat16,
        autocast=settings.autocast,
        kernel=kernel,
        fused_layers=layers == LIGER,
        lora_rank=config.lora.rank,
        lora_dropout=config.lora.rank > 0 and config.lora.dropout > 0,
        lora_targets=config.lora.targets,
        narrow_masks=device.is_gpu,
        bfloat16_stream=settings.residual_stream == BFLOAT16,
        bfloat16_norms=settings.autocast and device.count > 1,
        fused_rule=device.is_gpu and has_fused_rule(),
    )


def parameter_bytes(config: Config) -> int:
    """Return the bytes of one parameter in model.dtype."""
    return 2 if config.model.dtype == "bfloat16" else FLOAT


def _weights(config: Config, model: ModelSizes, base: ModelSizes | None, adapters: Adapters | None) -> list[Row]:
    each, dtype = parameter_bytes(config), config.model.dtype
    rows = [Row("policy's parameters", "trainer", model.parameters * each, f"{model.parameters:,} in {dtype}")]
    if adapters is not None:
        how = f"{adapters.parameters:,} in float32"
        if config.reads_base:
            how += "; the base is the policy without them"
        rows.append(Row("adapters", "trainer", adapters.parameters * FLOAT, how))
    if base is not None:
        what = f"{base.parameters:,} in {dtype}" if config.model.base else "a second copy of the policy"
        narrow = base.matrices if base.bfloat16 and config.model.autocast and dtype == "float32" else 0
        if narrow:
            what = f"{narrow:,} in bfloat16, which its config.json names, {base.parameters - narrow:,} in float32"
        rows.append(Row("frozen base", "trainer", base.parameters * each - narrow * (FLOAT - 2), what))
    return of_part(Part.WEIGHTS, rows)


def _optimiser(config: Config, model: ModelSizes, adapters: Adapters | None, device: Device) -> list[Row]:
    trained, tensors = (
        (model.parameters, model.tensors) if adapters is None else (adapters.parameters, adapters.tensors)
    )
    bytes_ = trained * (parameter_bytes(config) if adapters is None else FLOAT)
    rows = of_part(Part.TRAINED, [
        Row("gradients", "trainer", bytes_, "as the trained parameters", TRAINING),
        Row("AdamW's moments", "trainer", 2 * bytes_ + FLOAT * tensors, "2 x the trained parameters"),
    ])  # fmt: skip
    if config.objective.trains_log_z:
        with torch.device("meta"):
            head = sum(entry.numel() for entry in LearnedLogZ(model.hidden).parameters())
        how = "its parameters, gradients and two moments, in float32"
        rows.append(Row("log_z network", "trainer", 4 * head * FLOAT, how))
    return rows


def _forward_and_backward(config: Config, model: ModelSizes, device: Device) -> list[Row]:
    numbers, tokens = numbers_of(config, model, device), microbatch_tokens(config)
    saved = activations.count_saved(model, numbers)
    layer, outer = saved.layer, saved.outer
    flight = activations.in_flight_bytes(model, numbers)
    graph = (FORWARD, LOSS, BACKWARD)
    again = recomputed_layers(model.layers, config.model.checkpoint_share)
    whole, entry = model.layers - again, activations.checkpoint_bytes(model, numbers)
    kind = "Liger's layers" if numbers.fused_layers else "layers"
    held = [f"{whole} {kind} x {layer:,} B"] * (whole > 0) + [f"{again} layers' inputs x {entry:,} B"] * (again > 0)
    how = f"{tokens:,} tokens x ({' + '.join(held)} + {outer:,})"
    rows = [Row("activations", "trainer", tokens * (whole * layer + again * entry + outer), how, graph)]
    cast = 2 * model.body_linear // model.layers if numbers.autocast and not numbers.bfloat16 else 0
    casts = f"{model.body_linear // model.layers:,} linear weights of a layer x 2 B, made by autocast"
    if not whole:  # otherwise it takes the place of layers whose backward is done
        bytes_, how = tokens * layer + cast, f"{tokens:,} tokens x {layer:,} B"
        rows.append(Row("one layer, recomputed", "trainer", bytes_, how, (BACKWARD,)))
    how = f"{whole} x {casts}"
    rows.append(Row("bfloat16 copies of the weights", "trainer", whole * cast, how, graph, Part.COPIES))
    if not numbers.lora_rank:  # autocast keeps copies of trained weights only
        kept = (model.body_linear - model.expert_weights) // model.layers
        how = f"{again} x {kept:,} linear weights of a layer x 2 B, which autocast keeps until the forward pass ends"
        again_cast = again * 2 * kept if cast else 0
        rows.append(Row("bfloat16 copies in recomputed layers", "trainer", again_cast, how, (FORWARD,), Part.COPIES))
    how = f"{tokens:,} tokens x {flight:,} B of one layer"
    rows.append(Row("gradients in flight", "trainer", tokens * flight, how, (BACKWARD,)))
    if model.experts and not numbers.lora_rank:
        each = parameter_bytes(config) + (2 if cast else 0)
        joined = model.expert_weights // model.layers * 2 // 3  # gate and up of one layer
        how = f"{joined:,} of gate and up in a layer x {each} B, dense, before it is added"
        rows.append(Row("gradient of the experts", "trainer", joined * each, how, (BACKWARD,), Part.COPIES))
    return rows


def loss_rows(config: Config, model: ModelSizes, device: Device, *, tokens: int) -> list[Row]:
    """Return the rows of flow_loss's workspace; all tokens of a micro-batch count as response tokens."""
    numbers = numbers_of(config, model, device)
    factor = 2 if numbers.product == 2 and (device.is_gpu or cpu_multiplies_bfloat16()) else FLOAT
    vocabulary, head = model.vocab_size, model.vocab_size * model.hidden
    workspace = _workspace_on_gpu(config, model, factor, tokens) if device.is_gpu else None
    if workspace:
        block_bytes = workspace.block
    else:
        beside = 0 if config.lora.rank else head * FLOAT
        block_rows = cpu_block_rows(vocabulary, factor, head_gradient_bytes=beside)
        block_bytes = min(block_rows, tokens) * -(-vocabulary // 8) * 8 * factor
    shown_rows = block_bytes // (-(-vocabulary // 8) * 8 * factor)
    output = activations.count_saved(model, numbers).output
    narrowed = numbers.product if numbers.product != output else 0
    each = 2 * output + narrowed + FLOAT + output * model.divides_logits
    rows = [
        Row("hidden states and their gradient", "trainer", tokens * model.hidden * each,
            f"{tokens:,} tokens x {model.hidden:,} x {each} B", (LOSS, BACKWARD), Part.HIDDEN_STATES),
        Row("a block of logits", "trainer", block_bytes,
            f"{shown_rows:,} rows x {vocabulary:,} entries x {factor} B", (LOSS,), Part.HEAD),
    ]  # fmt: skip
    if factor != parameter_bytes(config):
        how = f"in the type of its products, {factor} B"
        rows.append(Row("copy of the head", "trainer", head * factor, how, (LOSS,), Part.HEAD))
    if config.lora.rank:
        return rows
    until = (LOSS, BACKWARD, EMBEDDING) if model.tied else (LOSS, BACKWARD)
    finished = parameter_bytes(config)
    how = f"vocabulary x width, finished in {finished} B"
    rows.append(Row("gradient of the head", "trainer", head * finished, how, until, Part.HEAD))
    if workspace:
        is_summed, is_cut = workspace.head_sum > 0, workspace.long_sum > 0
    else:
        is_summed = finished != FLOAT and (tokens > block_rows or factor != finished)
        is_cut = min(config.rollout.max_response_tokens, tokens) > block_rows
    if is_summed:
        rows.append(Row("its sum over blocks", "trainer", head * FLOAT, "in float32", (LOSS,), Part.HEAD))
    if is_cut:
        how = "a response may be longer than a block"
        rows.append(Row("the same for long sequences", "trainer", head * FLOAT, how, (LOSS,), Part.HEAD))
    dense = head * parameter_bytes(config)
    how = "dense, before it is added"
    return [*rows, Row("gradient of the embedding", "trainer", dense, how, (EMBEDDING,), Part.EMBEDDING)]


def _workspace_on_gpu(config: Config, model: ModelSizes, factor: int, tokens: int) -> Workspace:
    """Return the workspace of a micro-batch of the longest responses. factor: bytes of the products' type."""
    longest = config.rollout.max_response_tokens
    return flow_loss_workspace(
        [*range(0, tokens, longest), tokens],
        model.hidden,
        model.vocab_size,
        parameter_dtype=torch.bfloat16 if parameter_bytes(config) == 2 else torch.float32,
        factor_dtype=torch.bfloat16 if factor == 2 else torch.float32,
        trains_head=not config.lora.rank,
    )


def _local_sampler(config: Config, model: ModelSizes, device: Device) -> list[Row]:
    each = 2 if config.model.autocast else parameter_bytes(config)
    cached = most(config, device.count, lambda sampled: sampled.tokens)
    per_token = cache_bytes_per_token(model, each)
    drawn = most(config, device.count, lambda sampled: _drawing_bytes(sampled) * sampled.sequences)
    held = f"{cached.sequences:,} sequences x {cached.length:,} tokens"
    # one layer's at a time; not all versions of transformers repeat, but those for vLLM 0.32 do
    widths, what = 2 * model.key, "longer by one token"
    if model.heads > model.key_value_heads:
        widths, what = widths + 2 * model.query, f"{what}, and repeated to all {model.heads} heads"
    state = state_bytes(model, each)
    rounds = config.model.autocast and parameter_bytes(config) == FLOAT and device.count == 1
    return [
        Row("experts in bfloat16", "trainer", 2 * model.expert_weights * rounds,
            f"{model.expert_weights:,} x 2 B, rounded once for a batch that is decoded", (SAMPLING,)),
        Row("state of linear attention", "trainer", cached.sequences * state,
            f"{cached.sequences:,} sequences x {state:,} B{cached.note}", (SAMPLING,)),
        Row("KV cache of the local sampler", "trainer", cached.tokens * per_token,
            f"{held} x {per_token:,} B{cached.note}", (SAMPLING,)),
        Row("copies of one layer's cache", "trainer", cached.tokens * widths * each,
            f"{held} x {widths:,} x {each} B: {what}", (SAMPLING,)),
        Row("logits and cumulative sums", "trainer", drawn.sequences * model.vocab_size * _drawing_bytes(drawn),
            f"{drawn.sequences:,} sequences x {model.vocab_size:,} entries x {_drawing_bytes(drawn)} B{drawn.note}",
            (SAMPLING,), Part.SAMPLED_LOGITS),
    ]  # fmt: skip


def _drawing_bytes(sampled: Sampled) -> int:
    """Bytes for each entry of the vocabulary while a token is drawn, measured: the logits and their sums in float64,
    and with a nucleus also their order.
    """
    return 20 if sampled.top_p == 1 else 36


def cache_bytes_per_token(model: ModelSizes, element_bytes: int) -> int:
    """Return the bytes of keys and values of one token in all layers."""
    return 2 * model.attending * model.key * element_bytes


def state_bytes(model: ModelSizes, element_bytes: int) -> int:
    """Return the bytes that linear attention keeps of one sequence, however long, in all layers."""
    return FLOAT * model.state + element_bytes * model.convolved
