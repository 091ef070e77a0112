"""Proves on the loaded model, before it samples, that a packed batch equals its sequences alone, and that the log-probs
of training are those of the model's own logits.

No list of families can find what this finds on the real model: code that ignores where sequences end, position
embeddings that depend on the length of another sequence, a window that the attention does not keep, logits that the
model scales or caps behind its head. It costs two passes over 140 tokens and two over 96.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from fastflow.data.packing import PackedBatch, pack
from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.errors import FastflowError, message_of
from fastflow.models.layers import rope
from fastflow.models.packed import AdaptersOff, FrozenModel, PackedModel

LENGTHS = (5, 96, 1, 33)
# Shares of a hidden state's norm: the median over the tokens of a sequence. Models of 2 and 30 layers on a CPU showed
# 1e-6, and 1e-3 under autocast, whatever the residual stream's type. Where rounding has a mixture of 48 layers choose
# other experts for 14 % of its tokens and layers, it is 0.025. Sequences that see each other give 1.5, other
# frequencies 0.3 to 0.7. Shares of the spread of log-probs: the median over tokens, which is as small.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
FLOOR = 0.01  # of the size of log-probs, beside their spread: a head of zeros has none


def prepare_models(
    policy: PackedModel, base: PackedModel | AdaptersOff | None, *, longest: int, names: tuple[str, str]
) -> None:
    """Prepare policy and base for sequences of up to `longest` tokens. Reads no weights.

    Raises FastflowError, with the model's name, where its context is shorter. With LoRA the policy is the base.
    """
    for model, name in _apart(policy, base, names):
        context = rope.context_of(model.causal_lm.config)
        if context is not None and longest > context:
            raise FastflowError(
                f"the context of {name} is {context} tokens, but the longest prompt and "
                f"rollout.max_response_tokens need {longest}; lower data.max_prompt_tokens or "
                "rollout.max_response_tokens"
            )
        rope.fix_frequencies(model.causal_lm, longest)


def check_models(
    policy: PackedModel, base: PackedModel | AdaptersOff | None, *, longest: int, names: tuple[str, str]
) -> None:
    """Prove on policy and base that packing changes nothing, and that check_head passes. Models that are cut over ranks
    do this together.

    Raises FastflowError, with the model's name, where that is not so. With LoRA the policy is the base.
    """
    for model, name in _apart(policy, base, names):
        check_packing(model, longest=longest, name=name)
        check_head(model, longest=longest, name=name)


def _apart(
    policy: PackedModel, base: PackedModel | AdaptersOff | None, names: tuple[str, str]
) -> list[tuple[PackedModel, str]]:
    """Return the models that have weights of their own, with their names."""
    return [(policy, names[0]), *([(base, names[1])] if isinstance(base, FrozenModel) else [])]


def check_packing(model: PackedModel, *, longest: int, name: str) -> float:
    """Return the largest relative difference by packing. Raises FastflowError where it is over the tolerance."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, model.vocab_size, min(length, longest)) for length in LENGTHS]
    with _running(
        model,
        f"{name} cannot read a packed batch",
        "fastflow needs models whose code uses transformers' attention interface",
    ):
        packed = model.run(lambda: _packed(model, sequences, longest))
        alone = [model.run(functools.partial(_alone, model, ids)) for ids in sequences]
    allowed = TOLERANCE[model.dtype]
    differences = [_difference(*pair) for pair in zip(packed, alone, strict=True)]
    worst = max(differences)
    if not np.isfinite(differences).all():
        raise FastflowError(
            f"the hidden states of {name} are NaN or infinite; its weights are damaged: download or save them again"
        )
    if worst > allowed:
        kinds = rope.kinds(model.causal_lm.config)
        scaled = f" and position embeddings of the kind {kinds}" if kinds else ""
        raise FastflowError(
            f"{name} gives hidden states in a packed batch that are {worst:.2g} of their norm away from those of the "
            f"same sequences alone ({allowed:g} is allowed), with model.attention = {model.kernel}{scaled}: "
            "its attention or its position embeddings depend on the other sequences of a pass, so packed batches "
            "cannot train it; take a model without such code, or another model.attention"
        )
    return worst


def check_head(model: PackedModel, *, longest: int, name: str) -> float:
    """Return how far log-probs by the fused ops are from those of the logits that transformers computes, as a share of
    their spread. Raises FastflowError where that is over the tolerance.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.vocab_size, min(max(LENGTHS), longest))
    targets = torch.from_numpy(rng.integers(0, model.vocab_size, len(ids))).to(model.device)
    with _running(model, f"{name} cannot compute logits", "check the model's own code"):
        ours = model.run(lambda: model.logprobs(_alone(model, ids), targets))
        logits = model.run(lambda: _own_logits(model, ids))
    if not logits.isfinite().all():
        raise FastflowError(
            f"the logits of {name} are NaN or infinite; its head's weights are damaged: download or save them again"
        )
    theirs = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    spread = theirs.std(correction=0) + FLOOR * theirs.mean().abs()
    difference, allowed = float((ours - theirs).abs().median() / spread), TOLERANCE[model.dtype]
    if not difference <= allowed:
        raise FastflowError(
            f"the logits of {name} are not its head times its hidden states: log-probs from these are {difference:.2g} "
            f"of their spread away from log-probs of its own logits ({allowed:g} is allowed), so its code scales, caps "
            "or shifts them in a way that fastflow does not know; take a model without that"
        )
    return difference


@contextlib.contextmanager
def _running(model: PackedModel, failure: str, remedy: str) -> Iterator[None]:
    """Run a model's own code, which may raise anything, in eval mode. Raises FastflowError with failure and remedy."""
    try:
        with model.eval_mode(), torch.no_grad():
            yield
    except (FastflowError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise FastflowError(f"{failure} ({message_of(error, typed=True)}); {remedy}") from error


def _packed(model: PackedModel, sequences: list[np.ndarray], longest: int) -> list[torch.Tensor]:
    """Compute hidden states (n, D) of each sequence in one packed batch.

    The batch holds one more sequence, whose last token stands at the last position that the run can reach.
    """
    nothing = Trajectory(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), "length")
    companion = sequences[0][:2]
    groups = [Group(Prompt(ids), (nothing,)) for ids in (*sequences, companion)]
    (batch,) = pack(groups, tokens_per_microbatch=10**9)
    places = {index: place for place, index in enumerate(batch.sequences.tolist())}
    batch = _with_position(batch, places[len(sequences)], longest - 1).to(model.device)
    hidden = model.hidden_states(batch).split(batch.lengths)
    return [hidden[places[index]] for index in range(len(sequences))]


def _with_position(batch: PackedBatch, place: int, position: int) -> PackedBatch:
    """Give the last token of one sequence another position."""
    positions = batch.position_ids.clone()
    last = int(batch.cu_seqlens[place + 1]) - 1
    positions[last] = max(position, int(positions[last]))
    return replace(batch, position_ids=positions)


def _alone(model: PackedModel, ids: np.ndarray) -> torch.Tensor:
    """Compute hidden states (n, D) of one sequence, as transformers does by itself."""
    with model.decoding() as plain:
        row = torch.from_numpy(ids)[None].to(model.device)
        positions = torch.arange(len(ids), device=model.device)[None]
        return plain.get_decoder()(input_ids=row, position_ids=positions, use_cache=False).last_hidden_state[0]


def _own_logits(model: PackedModel, ids: np.ndarray) -> torch.Tensor:
    """Compute logits (n, V) of one sequence, as transformers does by itself."""
    with model.decoding() as plain, _callable_head(model):
        row = torch.from_numpy(ids)[None].to(model.device)
        positions = torch.arange(len(ids), device=model.device)[None]
        return plain(input_ids=row, position_ids=positions, use_cache=False).logits[0]


@contextlib.contextmanager
def _callable_head(model: PackedModel) -> Iterator[None]:
    """Let the model's own code call a head that is cut over the ranks."""
    cut, head = model.cut_head, model.causal_lm.get_output_embeddings()
    if cut is None:
        yield
        return
    dtype = torch.bfloat16 if model.autocast else head.weight.dtype
    head.forward = lambda hidden: cut.logits(hidden[0].to(dtype)).unsqueeze(0)
    try:
        yield
    finally:
        del head.forward


def _difference(packed: torch.Tensor, alone: torch.Tensor) -> float:
    packed, alone = packed.float(), alone.float()
    return float(((packed - alone).norm(dim=-1) / alone.norm(dim=-1).clamp(min=1e-30)).median())
