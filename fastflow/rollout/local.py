"""Decode batches with a KV cache in the trainer's own process, on any device: the embedded sampler.

Each prompt is prefilled once for all its responses. Token t of a response is drawn by inverting the cumulative
distribution at the t-th number of the request's own random stream. So a response does not depend on the other requests
of its batch, beyond floating-point rounding. Finished responses leave the batch.

Under several ranks each decodes its share of the responses. All go on to the longest of them, since every forward pass
is a collective.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastflow.data.trajectory import Group, Trajectory
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.rollout.admission import check_requests
from fastflow.rollout.decoding import DecodingBatch
from fastflow.rollout.sampler import OnProgress, Request, SamplingParams, unheard
from fastflow.rollout.stop_texts import StopTexts
from fastflow_kernels.sampling import exponentials_

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPACT_BELOW = 0.75  # share of unfinished rows at which finished ones are removed from the batch


class LocalSampler:
    """Samples from the policy's own weights, without a copy of them.

    eos_ids: tokens that end a response. tokenizer: needed for stop texts only.
    max_sequences: responses decoded at once. on_progress: receives the number of responses that finished since the last
    call.
    """

    def __init__(
        self,
        policy: PackedModel,
        *,
        eos_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_sequences: int = 256,
        on_progress: OnProgress = unheard,
    ):
        self._policy = policy
        self._eos_ids = torch.tensor(sorted(eos_ids), device=policy.device)
        self._tokenizer = tokenizer
        self._max_sequences = max_sequences
        self._on_progress = on_progress

    def load_weights(self, policy: PackedModel) -> None:
        self._policy = policy

    def close(self) -> None:
        """Release nothing: the weights are the trainer's."""

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return one group per request. Raises FastflowError for an unfit prompt and for logits that are not finite."""
        check_requests(self._policy, requests, params)
        stop_texts = self._stop_texts(params.stop)
        ranks = self._policy.ranks
        own: list[Trajectory] = []
        with self._policy.decoding():
            for chunk in self._chunks(requests):
                share = chunk[ranks.rank :: ranks.count]
                items = share or chunk[:1]  # with nothing of its own, a rank keeps step on a response that it drops
                finished = self._decode([(requests[index], seed) for index, seed in items], params, stop_texts)
                own += finished[: len(share)]
                self._on_progress(len(chunk) - len(items))
        trajectories = iter(self._in_order([len(chunk) for chunk in self._chunks(requests)], ranks.gather(own)))
        return [Group(request.prompt, tuple(next(trajectories) for _ in request.seeds)) for request in requests]

    def _in_order(self, sizes: Sequence[int], of_ranks: Sequence[Sequence[Trajectory]]) -> Iterator[Trajectory]:
        """Yield the ranks' responses in the order of the chunks that they were dealt from. sizes: of these."""
        responses = [iter(share) for share in of_ranks]
        for size in sizes:
            for place in range(size):
                yield next(responses[place % len(responses)])

    def _chunks(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        flat = [(index, seed) for index, request in enumerate(requests) for seed in request.seeds]
        size = self._max_sequences * self._policy.ranks.count
        for start in range(0, len(flat), size):
            yield flat[start : start + size]

    def _stop_texts(self, texts: tuple[str, ...]) -> StopTexts | None:
        if not texts:
            return None
        if self._tokenizer is None:
            raise FastflowError("stop texts need a tokenizer; give LocalSampler the policy's")
        return StopTexts(self._tokenizer, texts)

    def _decode(
        self, items: list[tuple[Request, int]], params: SamplingParams, stop_texts: StopTexts | None
    ) -> list[Trajectory]:
        """Decode one batch of (request, seed) to the end."""
        limit = params.max_response_tokens
        own_limit = torch.tensor([request.length_limit(params) for request, _ in items], device=self._policy.device)
        tokens = np.zeros((len(items), limit), dtype=np.int64)
        logprobs = np.zeros((len(items), limit), dtype=np.float32)
        length = np.full(len(items), limit)
        stopped = np.zeros(len(items), dtype=bool)
        uniforms = torch.from_numpy(
            np.stack([np.random.Generator(np.random.Philox(seed)).random(limit) for _, seed in items])
        ).to(self._policy.device)

        batch = DecodingBatch.prefill(self._policy, [request.prompt for request, _ in items])
        for position in range(limit):
            if position < params.min_response_tokens:
                batch.logits[:, self._eos_ids] = float("-inf")
            token, logprob = draw(batch.logits, uniforms[batch.items, position], params)
            ended = torch.isin(token, self._eos_ids)
            rows = batch.items.cpu().numpy()
            tokens[rows, position], logprobs[rows, position] = token.cpu().numpy(), logprob.cpu().numpy()
            if stop_texts is not None:
                least = params.min_response_tokens
                stopped_by = [stop_texts.end(tokens[row, : position + 1], least) for row in rows]
                ended |= torch.tensor(stopped_by, device=ended.device)
            stopped[rows[(batch.alive & ended).cpu().numpy()]] = True
            ended |= own_limit[batch.items] == position + 1
            done = (batch.alive & ended).cpu().numpy()
            length[rows[done]] = position + 1
            self._on_progress(int(done.sum()))
            batch.alive &= ~ended
            alive = int(batch.alive.sum())
            if position + 1 == limit or not self._policy.ranks.any(alive > 0):
                break
            if 0 < alive <= _COMPACT_BELOW * len(rows):
                token = token[batch.alive]
                batch.keep_alive()
            batch.advance(self._policy, token)
        return [
            Trajectory(
                response_ids=tokens[row, : length[row]].copy(),
                behaviour_logprobs=logprobs[row, : length[row]].copy(),
                finish_reason="stop" if stopped[row] else "length",
                seed=seed,
                weight_version=self._policy.version,
            )
            for row, (_, seed) in enumerate(items)
        ]


def draw(logits: torch.Tensor, uniform: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row by inverting its cumulative distribution at `uniform`.

    logits: (B, V) float32, overwritten. uniform: (B,) float64 in [0, 1). Returns the tokens (B,) int64 and their
    log-probabilities (B,) float32 under the distribution drawn from, as SamplingParams says it.
    """
    if params.temperature == 0:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    if 0 < params.top_k < logits.shape[1]:
        logits.masked_fill_(logits < logits.topk(params.top_k).values[:, -1:], float("-inf"))
    weights = exponentials_(logits, params.temperature)
    if params.min_p:
        weights.masked_fill_(weights < params.min_p, 0.0)  # the likeliest token's is 1
    if params.top_p < 1:
        _keep_nucleus_(weights, params.top_p)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))  # u * total may round up to total
    threshold = torch.minimum(uniform.unsqueeze(1) * total, below_total)
    token = torch.searchsorted(cumulative, threshold, right=True)
    return token.squeeze(1), (weights.gather(1, token) / total).log().squeeze(1).float()


def _keep_nucleus_(weights: torch.Tensor, top_p: float) -> None:
    """Set all weights to 0 but those of the smallest set of likeliest tokens whose share of the sum reaches top_p."""
    ordered, order = weights.sort(dim=-1, descending=True)
    mass = ordered.cumsum(-1, dtype=torch.float64)
    enough = top_p * mass[:, -1:]
    is_outside = mass.sub_(ordered) >= enough
    weights.masked_fill_(is_outside.scatter(1, order, is_outside), 0.0)
