"""Named starting points: those of the paper, its released code, the demo, and one for each compared method.

The paper fixes alpha, psi, models and data. Batch, lengths and optimiser follow EMPO's recipe, on which it builds. The
presets `compare-*` are the first set-up with another method: nothing else differs.
"""

from __future__ import annotations

from typing import Any

BOXED = r"\\boxed\{"

_PAPER = {
    "rollout.max_response_tokens": 3072,
    "data.max_prompt_tokens": 1024,
    "batch.prompts_per_step": 256,
    "batch.responses_per_prompt": 16,
    "batch.updates_per_rollout": 8,
    "optim.lr": 5e-7,
    "model.checkpoint_share": 1.0,
    "model.autocast": True,
    "run.save_every": 50,
}

_REASONING = {
    **_PAPER,
    "data.path": "AI-MO/NuminaMath-CoT",
    "data.prompt_field": "problem",
    "data.limit": 18000,
    "data.suffix": "\nLet's think step by step and put the final answer within \\boxed{}.",
    "objective.format_pattern": BOXED,
    "objective.format_penalty": -0.5,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper-reasoning-base": {
        **_REASONING,
        "model.path": "Qwen/Qwen2.5-Math-1.5B",
        "objective.alpha": 4.0,
        "run.output": "runs/paper-reasoning-base",
    },
    "paper-reasoning-instruct": {
        **_REASONING,
        "model.path": "meta-llama/Llama-3.2-3B-Instruct",
        "data.chat_template": True,
        "objective.alpha": 2.0,
        "run.output": "runs/paper-reasoning-instruct",
    },
    "paper-creative": {
        **_PAPER,
        "model.path": "Qwen/Qwen2.5-1.5B-Instruct",
        "data.chat_template": True,
        "objective.alpha": 0.5,
        "batch.prompts_per_step": 64,
        "batch.updates_per_rollout": 2,
        "run.output": "runs/paper-creative",
    },
    # `fastflow demo` runs this on the additions. It makes the model and the prompts that are named here.
    "demo": {
        "model.path": "runs/demo/sums/base",
        "model.device": "cpu",
        "data.path": "runs/demo/sums/prompts.jsonl",
        "rollout.max_response_tokens": 48,
        "objective.alpha": 4.0,
        "objective.log_z": "group_mean",
        "objective.format_pattern": BOXED,
        "batch.prompts_per_step": 16,
        "batch.responses_per_prompt": 8,
        "batch.tokens_per_microbatch": 8192,
        "optim.lr": 1e-3,
        "optim.schedule": "linear",
        "optim.final_lr_ratio": 0.1,
        "optim.max_grad_norm": 0.1,
        "run.steps": 100,
        "run.threads": 1,  # on so small a model, more threads only wait for each other
        "run.output": "runs/demo/sums/alpha_4",
        "run.samples_every": 25,
    },
}

# All that the method's released code is known to do in another way than its paper.
RELEASED: dict[str, Any] = {
    "released.token_mask": True,
    "released.log_z_offset": 0.36,
    "released.log_z_prompt": "without_last",
    "released.log_z_dropout": 0.1,
    "released.log_z_rate": "policy",
    "importance.source": "recompute",  # pi_old is the trainer's own
}

PRESETS["powerflow-released"] = {
    **PRESETS["paper-reasoning-base"],
    **RELEASED,
    "run.output": "runs/powerflow-released",
}

# What names a method, and nothing else. FlowRL and TBA get GRPO's reward. Dr. GRPO is GRPO with two switches.
METHODS: dict[str, dict[str, Any]] = {
    "powerflow": {"objective.name": "powerflow"},
    "tb-trajectory": {"objective.name": "tb_trajectory"},
    "tb-token": {"objective.name": "tb_token"},
    "flowrl": {"objective.name": "flowrl", "objective.reward": "answer"},
    "tba": {"objective.name": "tba", "objective.reward": "answer", "objective.log_z": "group_mean"},
    "rl-trajectory": {"objective.name": "rl_trajectory"},
    "rl-token": {"objective.name": "rl_token"},
    "grpo": {"objective.name": "grpo", "objective.reward": "answer"},
    "dr-grpo": {
        "objective.name": "grpo",
        "objective.reward": "answer",
        "surrogate.divide_by_std": False,
        "surrogate.average": "length_limit",
    },
    "empo": {"objective.name": "empo"},
    "ttrl": {"objective.name": "ttrl"},
    "intuitor": {"objective.name": "intuitor"},
    "rent": {"objective.name": "rent"},
    "random-reward": {"objective.name": "random_reward"},
    "format-reward": {"objective.name": "format_reward"},
    "distil": {"objective.name": "distil"},  # data.path must name recorded responses; its prompts have their suffix
}

BOXED_SOLUTION = {"objective.answer_field": "solution"}  # the record's field whose box holds the answer

PRESETS |= {
    f"compare-{name}": {
        **PRESETS["paper-reasoning-base"],
        **settings,
        **(BOXED_SOLUTION if "objective.reward" in settings else {}),
        "run.output": f"runs/compare-{name}",
    }
    for name, settings in METHODS.items()
}
