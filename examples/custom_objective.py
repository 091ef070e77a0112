r"""A loss of your own in one file: a policy gradient in place of PowerFlow's residual.

    python examples/tiny_model.py runs/own_objective/model
    python examples/custom_objective.py --config examples/own_prompts/run.yaml --model.path runs/own_objective/model \
        --run.output runs/own_objective/run --run.steps 20 --batch.responses_per_prompt 16

It takes the options of `fastflow train`, `--resume` among them; half a minute on a CPU. Sampling, packing, the base's
log-probs, optimiser, saves, metrics, alarms and report stay as they are; only the loss is another.

The advantage of a response is how far the policy falls short of the target p_base^alpha there, per token, against the
mean of its group; `objective.reward` adds a reward of yours. A clipped importance weight corrects for updates after the
first. On-policy and without a reward, the gradient is half of that of PowerFlow with `log_z: group_mean`.
"""

import sys

import torch

from fastflow.config.resume import read_request
from fastflow.config.schema import Config
from fastflow.data.packing import PackedBatch
from fastflow.errors import FastflowError
from fastflow.models.packed import PackedModel
from fastflow.models.scoring import sum_per_sequence
from fastflow.objectives.log_z import group_mean
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MicrobatchLoss
from fastflow.run.logs import open_console
from fastflow.train.command import train

REWARD_WEIGHT = 1.0  # nats per token


class PolicyGradient:
    """Minimises -advantage * log pi(y) / |y|, a mean over all responses of the update."""

    log_z_head = None  # nothing is trained beside the policy

    def __init__(self, config: Config, policy: PackedModel):
        self.objective, self.importance = config.objective, config.importance

    def parameters(self) -> list[torch.nn.Parameter]:
        return []

    def losses(self, policy: PackedModel, facts: Facts) -> LossOfMicrobatch:
        """`facts` holds numbers (n,) of all responses: what concerns the whole update is settled here."""
        length = facts.length.clamp(min=1)
        value = (self.objective.alpha * facts.base_logprob - facts.behaviour_logprob) / length
        value = value + REWARD_WEIGHT * facts.reward  # zeros where objective.reward is not set
        advantage = value - group_mean(value, facts.group)

        def loss(hidden: torch.Tensor, batch: PackedBatch) -> MicrobatchLoss:
            chosen = batch.sequences  # the responses of this micro-batch, S of n
            token_logprob = policy.logprobs(hidden[batch.rows], batch.targets)  # (N,), no logits in memory
            logprob = sum_per_sequence(token_logprob, batch)
            ratio = (logprob.detach() - facts.behaviour_logprob[chosen]).exp()
            weight = ratio.clamp(1 - self.importance.clip_low, 1 + self.importance.clip_high)
            each = -weight * advantage[chosen] * logprob / length[chosen]
            return MicrobatchLoss(
                loss=each.sum() / len(length),  # n, not S: the same gradient however micro-batches are cut
                token_logprob=token_logprob.detach(),
                logprob=logprob.detach(),
                residual=advantage[chosen],  # reported as residual_mean and residual_std
                log_z=torch.zeros_like(ratio),
                importance=weight,
                raw_ratio=ratio,
            )

        return loss


if __name__ == "__main__":
    try:
        request = read_request(sys.argv[1:])
        train(request.config, open_console(), objective=PolicyGradient, resume=request.resume)
    except FastflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
