"""Measures of a model's responses: how often they are right or well-formed, how long, how varied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastflow.data.response_text import ResponseText
from fastflow.data.trajectory import Group, Prompt, flatten
from fastflow.evaluate import scores
from fastflow.rollout.sampler import Sampler, SamplingParams, requests_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Test = Callable[[str, Prompt], bool]  # (response text, prompt) -> passed


def sample_texts(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    params: SamplingParams,
    seed: int,
) -> tuple[list[Group], list[list[str]]]:
    """Sample `samples` responses to each prompt. Returns them as groups and as texts."""
    groups = sampler.sample(requests_for(prompts, samples, seed=seed, step=0), params)
    text = ResponseText(tokenizer, (tokenizer.eos_token_id,))
    texts = [[text.of(entry.response_ids.tolist()) for entry in group.trajectories] for group in groups]
    return groups, texts


def common_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Estimate length, truncation and entropies (nats) of the distribution that gave the samples."""
    flat = flatten(groups)
    lengths = np.array([len(entry) for entry in flat])
    logprobs = np.array([entry.behaviour_logprobs.sum(dtype=np.float64) for entry in flat])
    return {
        "mean_length": float(lengths.mean()),
        "truncated_share": float(np.mean([entry.finish_reason == "length" for entry in flat])),
        "sequence_entropy": float(-logprobs.mean()),
        "token_entropy": float(-logprobs.sum() / lengths.sum()),
    }


def share(groups: Sequence[Group], texts: Sequence[Sequence[str]], test: Test) -> float:
    """Compute the share of responses that pass."""
    return float(np.mean(list(_outcomes(groups, texts, test))))


def pass_at(groups: Sequence[Group], texts: Sequence[Sequence[str]], test: Test) -> dict[str, float]:
    """Estimate pass@k, the mean over prompts, for each power of two k up to the samples of a prompt."""
    samples = len(texts[0])
    right = np.array(list(_outcomes(groups, texts, test))).reshape(-1, samples).sum(1)
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return {str(k): float(np.mean([scores.pass_at(int(count), samples, k) for count in right])) for k in powers}


def distinct_share(texts: Sequence[Sequence[str]]) -> float:
    """Compute the share of distinct responses to a prompt, averaged over prompts."""
    return float(np.mean([len(set(responses)) / len(responses) for responses in texts]))


def _outcomes(groups: Sequence[Group], texts: Sequence[Sequence[str]], test: Test) -> Iterator[bool]:
    for group, responses in zip(groups, texts, strict=True):
        yield from (test(response, group.prompt) for response in responses)
