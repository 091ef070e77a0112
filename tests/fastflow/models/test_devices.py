"""Training, sampling and packed attention on every device, float32 and under autocast."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from fastflow.config.reader import read_config
from fastflow.data.packing import pack
from fastflow.data.trajectory import Prompt, flatten
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import split_tokens, token_logprobs
from fastflow.rollout.local import LocalSampler
from fastflow.rollout.sampler import SamplingParams, requests_for
from fastflow.train.command import train
from small_models import FAMILIES, WITHOUT_CHOICE, make_causal_lm, make_groups

AUTOCAST = pytest.mark.parametrize("autocast", [False, True])


@AUTOCAST
def test_a_run(device, autocast, tmp_path, model_directory):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"ab{n}"}) + "\n" for n in range(4)))
    settings = {
        "model.path": model_directory,
        "model.device": device,
        "model.autocast": str(autocast).lower(),
        "data.path": prompts,
        "rollout.max_response_tokens": 8,
        "batch.prompts_per_step": 4,
        "batch.responses_per_prompt": 4,
        "batch.tokens_per_microbatch": 40,
        "optim.lr": 1e-3,
        "run.steps": 3,
        "run.output": tmp_path / "run",
        "run.report": "false",
    }
    config, _ = read_config([f"--{name}={value}" for name, value in settings.items()])
    train(config, Console(quiet=True))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        assert metrics["loss"] is not None and metrics["grad_norm"] > 0
        # on-policy, so the sampler and the trainer agree; bfloat16 bodies differ by rounding in the last layers
        assert metrics["ratio_p50"] == pytest.approx(1, abs=0.1 if autocast else 1e-3)


@AUTOCAST
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_agrees_with_the_trainer(device, autocast, family, rng):
    model = PackedModel(make_causal_lm(family, **WITHOUT_CHOICE.get(family, {})).to(device), autocast=autocast)
    prompts = [Prompt(rng.integers(1, 40, 5)) for _ in range(3)]
    params = SamplingParams(max_response_tokens=12)
    groups = LocalSampler(model, eos_ids=[0]).sample(requests_for(prompts, 4, seed=0, step=0), params)
    batches = [batch.to(device) for batch in pack(groups, tokens_per_microbatch=200)]
    trained = split_tokens(batches, [token_logprobs(model, batch) for batch in batches])
    error = max(
        float(np.abs(trajectory.behaviour_logprobs - logprobs).max())
        for trajectory, logprobs in zip(flatten(groups), trained, strict=True)
    )
    assert error <= (0.3 if autocast else 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
@pytest.mark.parametrize("kernel", ["varlen", "flash_attn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_attention_kernels_agree_with_sdpa(kernel, family, rng):
    if kernel == "flash_attn":
        pytest.importorskip("flash_attn")
    # head_dim 64: the smallest that every variable-length kernel supports
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    model = make_causal_lm(family, **sizes, **WITHOUT_CHOICE.get(family, {})).cuda()
    (batch,) = pack(make_groups(rng), tokens_per_microbatch=10**6)
    batch = batch.to(torch.device("cuda"))
    direction = torch.randn(batch.tokens, 128, device="cuda")  # of no norm, which the last layer would keep constant
    outputs, gradients = [], []
    for name in ("sdpa", kernel):
        hidden = PackedModel(model, kernel=name, autocast=True).hidden_states(batch)
        model.zero_grad()
        (hidden.float() * direction).mean().backward()
        outputs.append(hidden.float())
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert (outputs[0] - outputs[1]).abs().max() <= 0.05 * outputs[0].abs().max()
    assert (gradients[0] - gradients[1]).norm() <= 0.05 * gradients[0].norm()
