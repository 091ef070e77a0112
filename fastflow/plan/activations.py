"""Count the bytes that autograd keeps for the backward pass, per packed token, from what each operation saves.

For the layers of Llama, Qwen2 and Qwen3. D hidden, I intermediate, Q and K the widths of queries and of keys; p bytes
of a number in a product, r in the residual stream (under autocast of float32 parameters 2 and 4, and r is 2 with
model.residual_stream = bfloat16). On a CPU the tests find exactly these bytes among the saved tensors; with LoRA's
dropout they differ by up to 15 %. For CUDA the bytes come from the kernels' signatures and have not been measured.

    two norms       the input in float32, 4 D, one number a token, and r D normalised where the norm's scale is trained
    linear inputs   of q, k, v together and of gate, up together, what the norm puts out, r D; autocast of float32, and
                    LoRA on bfloat16, make a copy for each
    attention       p (2 Q + 2 K) of queries, keys, values and output and 4 a head; what o_proj reads, p Q, where the
                    kernel's output is gathered first (sdpa); keys and values as wide as the queries (varlen of
                    torch below 2.13, and sdpa in float32 on CUDA)
    query norms     4 (Q + K), p (Q + K) where they are trained, one number a head (Qwen3)
    MLP             p I of gate, up and silu each, and what down_proj reads
    adapters        rank numbers for each of the seven linear layers; with dropout a copy of each one's input and a mask

Liger's layers keep a norm's input unchanged and one number a token, r D + 4 (query norms p (Q + K) and one a head), and
of the MLP gate and up alone. What torch.compile keeps is not counted: it is at most what the plain layers keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastflow.plan.sizes import ModelSizes

FLOAT = 4
WIDE_SDPA = "sdpa with repeated keys"  # in float32 on CUDA
SHARING_VARLEN = "varlen without repeated keys"  # from torch 2.13 on


@dataclass(frozen=True)
class Numbers:
    """The types and layers of a forward pass. kernel: sdpa, WIDE_SDPA, varlen, SHARING_VARLEN or flash_attn.

    bfloat16_stream: model.residual_stream is bfloat16. bfloat16_norms: ranks round the weights of the layers' norms.
    """

    bfloat16: bool
    autocast: bool
    kernel: str
    fused_layers: bool = False
    lora_rank: int = 0
    lora_dropout: bool = False
    bfloat16_stream: bool = False
    bfloat16_norms: bool = False

    @property
    def product(self) -> int:
        return 2 if self.bfloat16 or self.autocast else FLOAT

    @property
    def residual(self) -> int:
        return 2 if self.bfloat16 or self.bfloat16_stream else FLOAT

    @property
    def normalised(self) -> int:
        """Bytes of a number that a layer's norm puts out: the wider type of stream and weight; Liger's the stream's."""
        return self.residual if self.bfloat16_norms else self.last_normalised

    @property
    def last_normalised(self) -> int:
        """The same of the last norm, whose weight no rank rounds."""
        return self.residual if self.bfloat16 or self.fused_layers else FLOAT

    @property
    def input_copy(self) -> int | None:
        """Bytes of a number in a linear layer's own copy of its input; None where it reads the input itself."""
        if self.autocast and (self.lora_rank or self.normalised == FLOAT):
            return 2
        return FLOAT if self.lora_rank and self.bfloat16 else None


def layer_bytes(model: ModelSizes, numbers: Numbers) -> int:
    """Return the saved bytes of one layer per token."""
    shared = _inputs(model.hidden, 3, numbers) + _inputs(model.hidden, 2, numbers)
    products = 2 if numbers.fused_layers else 3
    mlp = products * numbers.product * model.intermediate + _output_read_on(model.intermediate, numbers)
    norms = 2 * _norm(model, numbers) + _query_norms(model, numbers)
    return norms + shared + _attention(model, numbers) + mlp + _adapters(model, numbers)


def checkpoint_bytes(model: ModelSizes, numbers: Numbers) -> int:
    """Return the saved bytes of one layer per token under gradient checkpointing: its input."""
    return numbers.residual * model.hidden


def outer_bytes(model: ModelSizes, numbers: Numbers) -> int:
    """Return the saved bytes outside of the layers per token: last norm, rotary tables, token ids and positions."""
    rotary = 2 if numbers.bfloat16 else FLOAT
    return _norm(model, numbers) + 2 * rotary * model.head_dim + 3 * 8


def in_flight_bytes(model: ModelSizes, numbers: Numbers) -> int:
    """Return the bytes of gradients that exist at once in a layer's backward: three of the MLP, two of the residual."""
    return 3 * numbers.product * model.intermediate + 2 * FLOAT * model.hidden


def _norm(model: ModelSizes, numbers: Numbers) -> int:
    if numbers.fused_layers:
        return numbers.residual * model.hidden + FLOAT
    return FLOAT * model.hidden + FLOAT + numbers.residual * model.hidden * (not numbers.lora_rank)


def _inputs(width: int, readers: int, numbers: Numbers) -> int:
    """Return what `readers` linear layers keep of the input that they share."""
    return numbers.normalised * width if numbers.input_copy is None else readers * numbers.input_copy * width


def _output_read_on(width: int, numbers: Numbers) -> int:
    """Return what is kept of the input of down_proj, a product itself: in float32 for an adapter on bfloat16."""
    needs_float = numbers.lora_rank and numbers.bfloat16 and not numbers.autocast
    return (FLOAT if needs_float else numbers.product) * width


def _attention(model: ModelSizes, numbers: Numbers) -> int:
    product, query, key = numbers.product, model.query, model.key
    read_on = _output_read_on(query, numbers)
    statistics = FLOAT * model.heads
    keys = query if numbers.kernel in ("varlen", WIDE_SDPA) else key
    if numbers.kernel in ("sdpa", WIDE_SDPA):
        return product * (2 * query + 2 * keys) + statistics + read_on
    own_copy = read_on if read_on != product * query else 0  # otherwise o_proj reads the kernel's own output
    return product * (2 * query + 2 * keys) + statistics + own_copy


def _query_norms(model: ModelSizes, numbers: Numbers) -> int:
    if not model.normalises_queries:
        return 0
    width, heads = model.query + model.key, model.heads + model.key_value_heads
    if numbers.fused_layers:
        return numbers.product * width + FLOAT * heads
    normalised = numbers.product * width * (not numbers.lora_rank)
    return FLOAT * width + normalised + FLOAT * heads


def _adapters(model: ModelSizes, numbers: Numbers) -> int:
    if not numbers.lora_rank:
        return 0
    element = 2 if numbers.autocast else FLOAT
    inner = 7 * numbers.lora_rank * element
    if not numbers.lora_dropout:
        return inner
    widths = 5 * model.hidden + model.query + model.intermediate
    return inner + widths * (element + 1)
