"""The settings of a small run."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def settings(tmp_path, model_directory) -> dict[str, object]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(10)))
    return {
        "model.path": model_directory,
        "model.device": "cpu",
        "data.path": prompts,
        "rollout.max_response_tokens": 6,
        "batch.prompts_per_step": 4,
        "batch.responses_per_prompt": 3,
        "batch.tokens_per_microbatch": 40,
        "optim.lr": 1e-3,
        "objective.alpha": 2,
        "run.steps": 3,
        "run.output": tmp_path / "run",
        "run.samples_every": 2,
        "run.samples_per_dump": 4,
        "run.report": "false",
    }
