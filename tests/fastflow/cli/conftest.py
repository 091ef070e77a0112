"""A tiny set-up, and models that are wrong in some way."""

from __future__ import annotations

import json

import pytest
import torch

from command_line import invoke
from small_models import VOCABULARY, make_causal_lm, save_model

PROMPTS = ["ab", "cde", "f", "0123"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models by name; read only."""
    home = tmp_path_factory.mktemp("models")
    save_model(home / "fine")
    save_model(home / "larger", vocab_size=VOCABULARY + 8)
    save_model(home / "large-tokenizer", pieces="abcdefghijklmnopqrstuvwxyz0123456789+-*/=")
    save_model(home / "damaged")
    damaged = make_causal_lm()
    with torch.no_grad():
        damaged.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    damaged.save_pretrained(home / "damaged")
    save_model(home / "damaged-head", tied=False)
    damaged = make_causal_lm(tied=False)
    with torch.no_grad():
        damaged.lm_head.weight[0, 0] = torch.nan
    damaged.save_pretrained(home / "damaged-head")
    return home


@pytest.fixture
def train(tmp_path, models, capsys):
    """A function that runs `fastflow train` on a tiny set-up with some settings changed."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    settings = {
        "model.path": models / "fine",
        "model.device": "cpu",
        "data.path": prompts,
        "objective.log_z": "group_mean",
        "rollout.max_response_tokens": 4,
        "batch.prompts_per_step": 2,
        "batch.responses_per_prompt": 2,
        "run.steps": 2,
        "run.output": tmp_path / "run",
        "run.report": "false",
    }

    def run(**changes) -> tuple[int, str, str]:
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        return invoke(capsys, "train", *(f"--{name}={value}" for name, value in {**settings, **changed}.items()))

    return run
