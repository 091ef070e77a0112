"""Expect how fast an update is, on a device where updates of such a kind were measured."""

from __future__ import annotations

from dataclasses import dataclass

from fastflow.config.methods import OFFLINE, POLICY_GRADIENTS
from fastflow.config.schema import Config
from fastflow.plan.device import Device
from fastflow.plan.estimate import Sizes
from fastflow.plan.sizes import ModelSizes


@dataclass(frozen=True)
class Measured:
    """What `python -m bench.step` has found: arithmetic per second that an update needs, nothing padded or repeated."""

    device: str  # a part of its name
    flops_per_s: float
    workload: str


# bfloat16 autocast over float32 parameters, all of them trained, Liger's layers, a float32 residual stream: one in
# bfloat16 is taken to be no slower
MEASURED = (Measured("H200", 502.3e12, "Qwen2.5-1.5B's widths with 4 layers, 26 November 2026"),)


@dataclass(frozen=True)
class Speed:
    """The update alone, of responses of full length: sampling comes on top. tokens_per_s: prompts and responses."""

    tokens_per_s: float
    seconds_per_step: float
    measured: Measured
    devices: int

    def __str__(self) -> str:
        communication = "" if self.devices == 1 else f", times {self.devices} without their communication"
        return (
            f"updates of about {self.tokens_per_s:,.0f} tokens/s are expected: {self.seconds_per_step:,.1f} s of a "
            f"step with every response at full length, from {self.measured.flops_per_s / 1e12:.0f} TFLOP/s on an "
            f"{self.measured.device} ({self.measured.workload}){communication}; sampling comes on top"
        )


def expected_speed(config: Config, sizes: Sizes, device: Device) -> Speed | None:
    """Return what updates of these settings should reach on `device`; None where nothing of the kind was measured."""
    found = next((entry for entry in MEASURED if device.is_gpu and entry.device in device.origin), None)
    model = config.model
    as_measured = (
        model.autocast and not config.lora.rank and not model.checkpoint_share
        and model.fused_layers != "off" and sizes.model.fusable
    )  # fmt: skip
    if found is None or not as_measured or config.objective.name in OFFLINE:
        return None
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    sequences = config.batch.prompts_per_step * config.batch.responses_per_prompt
    rate = found.flops_per_s * device.count
    seconds = sequences * update_flops(config, sizes, prompt, response) / rate
    return Speed(sequences * (prompt + response) / seconds, seconds, found, device.count)


def update_flops(config: Config, sizes: Sizes, prompt: int, response: int) -> int:
    """Return the arithmetic that one sequence needs: the base forward, the policy forward and backward; the head on the
    response's rows, attention causal, of experts those that a token runs, a state of linear attention read twice and
    written once by each token. A loss that knows its gradient only behind the head projects twice, and behaviour
    log-probs of the trainer's own are one more forward.
    """
    policy = sizes.model
    length = prompt + response - 1

    def head(model: ModelSizes) -> int:
        return 2 * model.hidden * model.vocab_size * response

    def forward(model: ModelSizes) -> int:
        attention = 2 * model.attending * model.query * length * length + 6 * model.state * length
        return 2 * model.active_linear * length + attention + head(model)

    again = head(policy) if config.objective.name in POLICY_GRADIENTS or config.released.token_mask else 0
    recomputed = forward(policy) if config.importance.source == "recompute" else 0
    of_base = forward(sizes.base or policy) if config.reads_base else 0
    return of_base + recomputed + 3 * forward(policy) + again
