"""Write sample dumps: samples.jsonl for the report, and one text file for each dumped step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastflow.counted import counted
from fastflow.data.response_text import spell
from fastflow.data.trajectory import Group
from fastflow.data.update import UpdateResult
from fastflow.objectives.judging import Judgement
from fastflow.run.directory import SAMPLES_FILE
from fastflow.run.output_file import writing
from fastflow.visible import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe(
    step: int,
    groups: Sequence[Group],
    judgement: Judgement,
    result: UpdateResult,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> list[dict[str, Any]]:
    """Return at most `count` samples: those with the highest and the lowest reward, where there is one, the likeliest
    and the unlikeliest under the base, the longest, then the first.
    """
    flat = [(group.prompt, trajectory) for group in groups for trajectory in group.trajectories]
    per_token = result.length.clamp(min=1)
    mean_base, mean = (result.base_logprob / per_token).numpy(), (result.logprob / per_token).numpy()
    has_base = bool(np.isfinite(mean_base).all())
    extremes = [int(mean_base.argmax()), int(mean_base.argmin())] if has_base else []
    if judgement.scores is not None:
        extremes = [int(np.argmax(judgement.scores)), int(np.argmin(judgement.scores)), *extremes]
    chosen = dict.fromkeys([*extremes, int(result.length.argmax()), *range(len(flat))])
    samples = []
    for index in list(chosen)[:count]:
        prompt, trajectory = flat[index]
        samples.append(
            {
                "step": step,
                "prompt": prompt.text,
                "response": judgement.text[index],
                "tokens": [spell(tokenizer, [token]) for token in trajectory.response_ids.tolist()],
                "logprobs": _rounded(result.token_logprobs[index]),
                "base_logprobs": _rounded(result.base_token_logprobs[index]) if has_base else None,
                "length": len(trajectory),
                "finish_reason": trajectory.finish_reason,
                "well_formed": None if judgement.well_formed is None else judgement.well_formed[index],
                "reward": None if judgement.scores is None else judgement.scores[index],
                "residual": float(result.residual[index]),
                "importance": float(result.importance[index]),
                "mean_logprob": float(mean[index]),
                "mean_base_logprob": float(mean_base[index]) if has_base else None,
            }
        )
    return samples


def write_samples(directory: Path, step: int, samples: Sequence[dict[str, Any]]) -> None:
    """Append to samples.jsonl and write samples/step-N.txt."""
    text = "\n".join(_readable(sample) for sample in samples)
    with writing(directory):
        with (directory / SAMPLES_FILE).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in samples)
        (directory / "samples").mkdir(exist_ok=True)
        (directory / "samples" / f"step-{step:06d}.txt").write_text(text, encoding="utf-8")


def _readable(sample: dict[str, Any]) -> str:
    ending = "cut at the limit" if sample["finish_reason"] == "length" else "ended by itself"
    form = {True: ", well-formed", False: ", malformed", None: ""}[sample["well_formed"]]
    base = "" if sample["mean_base_logprob"] is None else f"log p_base {sample['mean_base_logprob']:.3f}, "
    reward = "" if sample["reward"] is None else f", reward {sample['reward']:.3f}"
    return (
        f"----- {counted(sample['length'], 'token')}, {ending}{form}; per token: log pi {sample['mean_logprob']:.3f}, "
        f"{base}residual {sample['residual']:+.3f}{reward}\n"
        f"[prompt] {visible(sample['prompt'])}\n[response] {visible(sample['response'])}\n"
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]
