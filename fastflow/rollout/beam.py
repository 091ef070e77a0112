"""Beam search: the likeliest responses that a search of bounded width finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastflow.data.trajectory import Group, Prompt, Trajectory
from fastflow.models.packed import PackedModel
from fastflow.rollout.admission import check_requests
from fastflow.rollout.decoding import DecodingBatch
from fastflow.rollout.sampler import Request, SamplingParams

_NEVER = float("-inf")


@dataclass(frozen=True)
class Beam:
    """What a search found, best first, and the tokens that it spent: those appended to a beam, kept or not."""

    trajectories: tuple[Trajectory, ...]
    sampled_tokens: int


class BeamSearch:
    """Keeps, after each token, the `beams` responses of largest total log-probability, ended ones among them.

    Nothing is divided by the length, so that the search looks for the largest p(y). It reads the policy's logits
    itself: no engine takes part.
    """

    def __init__(self, policy: PackedModel, *, eos_ids: Sequence[int], beams: int):
        self._policy, self._beams = policy, beams
        self._eos_ids = torch.tensor(sorted(eos_ids), device=policy.device)

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> list[Group]:
        """Return as many of the best responses to each prompt as it has seeds; a small space may hold fewer."""
        return [
            Group(request.prompt, self.search(request, params).trajectories[: len(request.seeds)])
            for request in requests
        ]

    @torch.no_grad()
    def search(self, request: Request, params: SamplingParams) -> Beam:
        """Search the responses to one prompt. Reads the length limit alone of the parameters."""
        check_requests(self._policy, [request], params)
        limit = request.length_limit(params)
        with self._policy.decoding():
            return self._search(request.prompt, limit)

    def _search(self, prompt: Prompt, limit: int) -> Beam:
        beams, device = self._beams, self._policy.device
        batch = DecodingBatch.prefill(self._policy, [prompt] * beams)
        tokens = torch.zeros((beams, limit), dtype=torch.int64, device=device)
        logprobs = torch.zeros((beams, limit), dtype=torch.float64, device=device)
        length = torch.zeros(beams, dtype=torch.int64, device=device)
        ended = torch.zeros(beams, dtype=torch.bool, device=device)
        total = torch.full((beams,), _NEVER, dtype=torch.float64, device=device)
        total[0] = 0.0  # all rows hold the prompt alone: the first stands for them
        spent = 0
        for position in range(limit):
            spent += int((~ended & total.isfinite()).sum())
            following = torch.log_softmax(batch.logits.double(), dim=-1)
            width = min(beams, following.shape[1])
            best, candidate = following.topk(width, dim=-1)
            grown = (total.unsqueeze(1) + best).masked_fill(ended.unsqueeze(1), _NEVER)
            kept = total.masked_fill(~ended, _NEVER).unsqueeze(1)
            total, place = torch.cat([grown, kept], dim=1).flatten().topk(beams)
            row, column = place // (width + 1), place % (width + 1)
            goes_on = column < width
            token = candidate[row, column.clamp(max=width - 1)]
            tokens, logprobs, length, ended = tokens[row], logprobs[row], length[row], ended[row]
            tokens[:, position] = torch.where(goes_on, token, 0)
            logprobs[:, position] = torch.where(goes_on, best[row, column.clamp(max=width - 1)], 0.0)
            length += goes_on
            ended |= goes_on & torch.isin(token, self._eos_ids)
            if position + 1 == limit or bool((ended | total.isinf()).all()):
                break
            batch.select(row)
            batch.advance(self._policy, token)
        found = [
            Trajectory(
                response_ids=tokens[place, : length[place]].cpu().numpy(),
                behaviour_logprobs=logprobs[place, : length[place]].cpu().numpy().astype(np.float32),
                finish_reason="stop" if ended[place] else "length",
                weight_version=self._policy.version,
            )
            for place in range(beams)
            if total[place].isfinite()
        ]
        return Beam(tuple(found), spent)
