"""Run directories as training leaves them, made of plausible numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from fastflow.config.schema import Config, ModelConfig

EVALUATION = {
    "base": {"accuracy": 0.41, "greedy_accuracy": 0.7, "truncated_share": 0.02, "pass_at": {"1": 0.41, "2": 0.5}},
    "low_temperature": {"accuracy": 0.6, "truncated_share": 0.01, "pass_at": {"1": 0.6, "2": 0.66}},
    "alpha_4": {"accuracy": 0.85, "greedy_accuracy": 0.9, "truncated_share": 0.0, "pass_at": {"1": 0.85, "2": 0.9}},
}


def step_record(step: int, **changes: Any) -> dict[str, Any]:
    record = {
        "loss": 1 / step, "residual_mean": 0.1, "residual_std": 0.5, "log_z": -1.0, "length_mean": 20.0 + step,
        "length_p10": 10, "length_p50": 20, "length_p90": 30, "length_max": 48, "truncated_share": 0.25,
        "malformed_share": None, "reward_mean": None, "token_entropy": 0.75, "sequence_entropy": 15.0,
        "logprob_mean": -0.5,
        "base_logprob_mean": -0.75, "ratio_p01": 0.8, "ratio_p50": 1.0, "ratio_p99": 1.2, "clipped_share": 0.1,
        "effective_sample_size": 0.9, "slope": 1.0 + step, "alpha": 4.0, "grad_norm": 2.0, "lr": 5e-7,
        "repetition": 0.01, "seconds_sample": 1.0, "seconds_reward": 0.125, "seconds_score": 0.25,
        "seconds_train": 0.5, "seconds": 2.0,
        "sample_tokens_per_second": 2e4, "score_tokens_per_second": 8e4, "train_tokens_per_second": 4e4,
        "peak_memory_bytes": 2**30, "microbatches": 2, "tokens": 4000, "responses": 64, "weight_lag": 0.0,
        "mismatch_mean": 1e-5, "mismatch_p99": 1e-4, "mismatch_max": 2e-4, "mismatch_kl": 1e-9, "alarms": [],
    }  # fmt: skip
    return {"step": step, **record, **changes}


def sample_record(name: str, **changes: Any) -> dict[str, Any]:
    record = {
        "step": 4, "prompt": f"prompt of {name}", "response": f"{name} text", "tokens": [name, " text"],
        "logprobs": [-0.5, -4.0], "base_logprobs": [-2.0, -0.25], "length": 2, "finish_reason": "stop",
        "well_formed": True, "reward": None, "residual": 0.125, "weight": 1.0, "mean_logprob": -1.0,
        "mean_base_logprob": -1.0,
    }  # fmt: skip
    return {**record, **changes}


def write_run(
    directory: Path, *, steps: list[dict] | None = None, samples: list[dict] | None = None, evaluation: Any = None
) -> Path:
    directory.mkdir()
    steps = [step_record(step) for step in range(1, 5)] if steps is None else steps
    settings = dataclasses.asdict(Config(model=ModelConfig(path="models/tiny")))
    (directory / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    if samples is not None:
        (directory / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in samples))
    if evaluation is not None:
        (directory / "evaluation.json").write_text(json.dumps(evaluation))
    return directory
