"""The sections of a run's settings: each declares its settings with their defaults, bounds and help.

Where the paper leaves a value open, the help names the recipe that it follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastflow.config.methods import (
    RESPONSE_FIELD,
)
from fastflow.config.setting import Section, setting

EVALUATED = "eval/"  # how the names of an evaluation's metrics begin
GYM = "gym:"  # begins a data.path that names data sets of reasoning-gym


@dataclass(frozen=True)
class DataConfig(Section):
    """Where prompts come from, and how they become tokens."""

    path: str = setting(
        "",
        "Prompts: a .jsonl, .json, .csv (.gz, .bz2, .xz) or .parquet file, a Hugging Face dataset id or directory, or "
        "gym:NAME",
    )
    gym: Mapping[str, Any] | None = setting(
        None, "Settings of gym:NAME, such as {size: 1000, seed: 0, min_terms: 2} (defaults: size 500, seed 0)"
    )
    subset: str | None = setting(None, "Configuration name of a Hugging Face dataset")
    split: str = setting("train", "Split of a Hugging Face dataset")
    prompt_field: str = setting("prompt", "Field with the prompt: a string, or a list of {role, content} messages")
    response_field: str = setting(
        RESPONSE_FIELD,
        "distil: field with a recorded response, a string or a list of them; beside it may stand response_ids (its "
        "tokens), finish_reason (stop or length) and weight",
    )
    chat_template: bool = setting(False, "Render prompts with the tokenizer's chat template instead of as raw text")
    template_arguments: Mapping[str, Any] | None = setting(
        None, "Variables for the chat template, such as {enable_thinking: false} (needs chat_template)"
    )
    final_assistant: Literal["drop", "continue", "error"] = setting(
        "drop",
        "What happens to an assistant turn at the end: drop leaves it out, continue lets the response continue it, "
        "error refuses the record",
    )
    system: str | None = setting(None, "System message in front of each prompt (needs chat_template)")
    suffix: str = setting("", "Instruction that follows the prompt's text or its last user message")
    limit: int = setting(0, "Use only the first N records; 0 uses all", unit="records", at_least=0)
    max_prompt_tokens: int = setting(1024, "Drop longer prompts, and report how many", unit="tokens", at_least=1)
    overlong: Literal["drop", "error"] = setting("drop", "Prompts over max_prompt_tokens: leave them out, or stop")
    shuffle: bool = setting(True, "Visit the prompts in a new random order each epoch")


@dataclass(frozen=True)
class RolloutConfig(Section):
    """How the engine samples responses."""

    engine: Literal["local", "vllm", "vllm-server"] = setting(
        "local",
        "Sampler: local (embedded), vllm (in a process of its own), or vllm-server (running servers, over HTTP)",
    )
    temperature: float = setting(1.0, "Sampling temperature", above=0)
    top_p: float = setting(1.0, "Nucleus: sample from the fewest tokens with this much probability", above=0, at_most=1)
    top_k: int = setting(0, "Sample from the k likeliest tokens; 0 from all", unit="tokens", at_least=0, at_most=10**9)
    min_p: float = setting(
        0.0, "Leave out tokens with less than this share of the likeliest one's probability", at_least=0, at_most=1
    )
    max_response_tokens: int = setting(3072, "Length limit, end-of-sequence token included", unit="tokens", at_least=1)
    min_response_tokens: int = setting(
        0, "Draw no end-of-sequence token before N other tokens", unit="tokens", at_least=0
    )
    stop: tuple[str, ...] = setting(
        (),
        "Texts that end a response and belong to it: one, or a list such as [STOP, DONE], in which a text with "
        "brackets of its own needs quotes; a special token counts by its text",
    )
    max_sequences: int = setting(256, "Responses that the engine decodes at once", unit="sequences", at_least=1)
    ahead: int = setting(
        0,
        "1: sample the next step while this one trains, from weights one step old; importance weights correct for it",
        at_least=0, at_most=1,
    )  # fmt: skip
    memory_fraction: float = setting(0.4, "vllm: share of the GPU's memory that vLLM may use", above=0, below=1)
    sleep: Literal["auto", "off", "weights-to-cpu", "drop-weights"] = setting(
        "auto",
        "vllm: what vLLM frees on the GPU while the policy trains. off: nothing; weights-to-cpu: its cache, and its "
        "weights move to the CPU; drop-weights: its cache and its weights; auto: drop-weights, but off on a CPU and "
        "with rollout.ahead",
    )
    startup: float = setting(900.0, "vllm that takes longer to start counts as hung", unit="seconds", above=0)
    silence: float = setting(300.0, "vllm without progress for longer counts as hung", unit="seconds", above=0)
    restarts: int = setting(
        3, "vllm: maximum consecutive restarts of a process that died or hung; each restart samples the step again",
        at_least=0,
    )  # fmt: skip
    adapters: Literal["auto", "merge", "apply"] = setting(
        "auto",
        "vllm: merge LoRA adapters into the weights that vLLM gets, or let vLLM apply them; auto: apply where a merge "
        "would be rounded to bfloat16",
    )
    servers: tuple[str, ...] = setting((), "vllm-server: addresses, such as localhost:8000,other:8000")
    shared_folder: str | None = setting(
        None, "vllm-server: directory through which weights travel; the servers see it under the same path"
    )

    @property
    def samples_the_policy(self) -> bool:
        """Whether responses come from the policy itself, and not from a changed distribution."""
        drawn = (self.temperature, self.top_p, self.top_k, self.min_p, self.min_response_tokens)
        return drawn == (1.0, 1.0, 0, 0.0, 0)


@dataclass(frozen=True)
class BatchConfig(Section):
    """Three sizes, one unit each, and how many updates follow a rollout."""

    prompts_per_step: int = setting(256, "Prompts in each step", unit="prompts", at_least=1)
    responses_per_prompt: int = setting(16, "Responses to each prompt", unit="responses", at_least=1)
    tokens_per_microbatch: int = setting(
        16384, "Packed tokens of one forward and backward pass; this changes memory and speed, never the gradient",
        unit="tokens", at_least=1,
    )  # fmt: skip
    updates_per_rollout: int = setting(
        1, "Optimiser updates in each step; each takes an equal share of the step's prompts", unit="updates", at_least=1
    )


@dataclass(frozen=True)
class OptimConfig(Section):
    """AdamW, its learning rate and its gradient bound."""

    lr: float = setting(5e-7, "Peak learning rate of the policy (EMPO's value)", above=0)
    log_z_lr: float = setting(
        1e-3,
        "Learning rate of the learned log_z; it starts untrained and needs more than the policy",
        above=0,
    )
    betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's moment decay rates", at_least=0, below=1)
    eps: float = setting(1e-8, "AdamW's epsilon", above=0)
    weight_decay: float = setting(
        0.0, "AdamW's decoupled weight decay, of matrices: biases and norms do not decay", at_least=0
    )
    warmup_updates: int = setting(0, "Updates over which the learning rate rises linearly", unit="updates", at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = setting("constant", "Course of the learning rate after warm-up")
    final_lr_ratio: float = setting(
        0.0,
        "Share of the peak that a linear or cosine course falls to: the rate after the last update, not the last "
        "update's own",
        at_least=0,
        at_most=1,
    )
    max_grad_norm: float = setting(1.0, "Scale a gradient above this norm down to it", above=0)
    max_skips: int = setting(
        3,
        "Skip up to N updates in a row whose loss or gradient is NaN or infinite; one more ends the run",
        unit="updates",
        at_least=0,
    )


@dataclass(frozen=True)
class RunConfig(Section):
    """How long the run is, what it writes and where."""

    steps: int = setting(100, "Steps; each samples once and updates the policy", unit="steps", at_least=1)
    seed: int = setting(0, "Fixes sampling, data order and initialisation on one device", at_least=0, at_most=2**63 - 1)
    output: str = setting("runs/train", "Run directory: settings, metrics, samples, model, report")
    overwrite: bool = setting(False, "Replace an earlier run in run.output")
    threads: int = setting(0, "CPU threads; 0 keeps torch's default", unit="threads", at_least=0)
    save_every: int = setting(
        0,
        "Save everything every N steps, so that the run can be resumed; 0 saves at the end only",
        unit="steps",
        at_least=0,
    )
    keep: int = setting(2, "Newest saves that stay on the disk", unit="saves", at_least=1)
    best_metric: str | None = setting(
        None,
        "Also save and keep the policy with the best value of this metric of an evaluation, such as eval/math500/avg@8",
    )
    best_is: Literal["highest", "lowest"] = setting("highest", "Which value of run.best_metric is the best")
    export_dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Type of the saved policy; auto: the model's, but float32 where a merge of LoRA adapters into bfloat16 would "
        "lose over 5 % of what they learned",
    )
    samples_every: int = setting(10, "Write sample responses every N steps; 0 writes none", unit="steps", at_least=0)
    samples_per_dump: int = setting(8, "Responses that are written each time", unit="responses", at_least=1)
    tensorboard: bool = setting(False, "Also write TensorBoard events (pip install 'fastflow[tensorboard]')")
    wandb: str | None = setting(None, "Log to this Weights & Biases project (pip install 'fastflow[wandb]')")
    report: bool = setting(True, "Write report.html at the end")
    replicas: int = setting(
        1,
        "Whole copies of the models, each cut over its own ranks (HSDP); as many as there are machines, where one "
        "machine has room for the models: then layers travel inside a machine only",
        unit="copies",
        at_least=1,
    )
    hang_after: float = setting(
        45.0,
        "End a run of several ranks when none moves on for so long, and for 3 times the longest so far",
        unit="seconds",
        at_least=1,
    )


@dataclass(frozen=True)
class EvalConfig(Section):
    """Evaluation during training: what the policy is asked every so many steps. The training does not depend on it."""

    every: int = setting(0, "Evaluate every N steps, and after the last; 0 never does", unit="steps", at_least=0)
    tasks: tuple[str, ...] = setting(
        (),
        "Names, YAML files or JSONL files as `fastflow evaluate --tasks` takes them, such as aime24,own.jsonl",
    )
    samples: int = setting(4, "Responses to each question", unit="responses", at_least=1, at_most=4096)
    limit: int = setting(0, "Use only the first N questions of each task; 0 uses all", unit="questions", at_least=0)
    temperature: float = setting(1.0, "Sampling temperature; 0 is greedy", at_least=0)
    top_p: float = setting(1.0, "Nucleus: sample from the fewest tokens with this much probability", above=0, at_most=1)
    top_k: int = setting(0, "Sample from the k likeliest tokens; 0 from all", unit="tokens", at_least=0, at_most=10**9)
    min_p: float = setting(
        0.0, "Leave out tokens with less than this share of the likeliest one's probability", at_least=0, at_most=1
    )
    max_response_tokens: int = setting(
        0,
        "Length limit, end-of-sequence token included; 0 takes rollout.max_response_tokens",
        unit="tokens",
        at_least=0,
    )
    seed: int = setting(0, "Fixes the responses; the same seeds at every step", at_least=0, at_most=2**63 - 1)
    at_start: bool = setting(True, "Evaluate before the first step too: what the base can do")
    grader: Literal["math", "choice", "exact", "numeric"] = setting("math", "Grader of own JSONL files")
    reward: str | None = setting(
        None,
        "Function that gives responses to own JSONL files a number, in place of grader and answers: "
        "package.module:function(response_text, record) -> float",
    )
    data_folder: str | None = setting(None, "Directory with NAME.jsonl, NAME.parquet or a data set NAME for each task")
    patience: int = setting(
        0,
        "End the run after N evaluations in a row in which run.best_metric, an evaluation's, is no better than before; "
        "0 never does",
        unit="evaluations",
        at_least=0,
    )

    def is_due(self, step: int, steps: int) -> bool:
        """Whether an evaluation follows this step of `steps`."""
        return self.every > 0 and (step % self.every == 0 or step == steps)
