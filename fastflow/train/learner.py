"""One PowerFlow update: pack, score with the frozen base, take the loss and its gradient, step.

The number of trajectories that the loss is averaged over is fixed before the first forward pass, so that neither the
micro-batch size nor the packing order nor the number of ranks changes the gradient beyond rounding. All ranks know all
trajectories, and each computes its share of them; what they decide, they decide on the same numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fastflow.config.schema import Config, OptimConfig
from fastflow.data.packing import PackedBatch
from fastflow.data.trajectory import Group, flatten
from fastflow.data.update import UpdateResult
from fastflow.interrupt import deferred_interrupt
from fastflow.models.cut.parallel import whole
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.scoring import behaviour_logprob, group_index, sum_per_sequence, token_logprobs
from fastflow.models.share import Share
from fastflow.objectives.by_name import make_objective
from fastflow.objectives.known_tokens import KnownTokens
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MakeObjective, MicrobatchLoss
from fastflow.train.finite import Skips, last_straw, not_finite, unknown_facts, unusable

OF_THE_POLICY = ("logprob", "residual", "log_z", "importance", "raw_ratio")  # of each response, when the policy has run


class Learner:
    """Holds policy, base, log_z head and optimiser, and turns groups of trajectories into updates.

    base: None where the objective asks for no base log-probs, which are NaN then. total_updates: the updates that the
    learning-rate schedule spans. objective: makes the one that gives the loss.
    skips: updates that were skipped because their numbers were not finite.
    """

    def __init__(
        self,
        policy: PackedModel,
        base: PackedModel | AdaptersOff | None,
        config: Config,
        *,
        total_updates: int,
        objective: MakeObjective = make_objective,
    ):
        self.policy = policy
        self.base = base
        self._unknown = unknown_facts(config)
        self.config = config
        self.skips = Skips()
        self.objective = objective(config, policy)
        optim = config.optim
        own = self.objective.parameters()
        own_rate = optim.log_z_lr if self._own_rate else optim.lr
        self._bounded = [policy.parameters(), own] if own else [policy.parameters()]  # with one gradient norm each
        groups = [
            group
            for parameters, lr in zip(self._bounded, (optim.lr, own_rate), strict=False)
            for group in decayed_groups(parameters, lr, optim.weight_decay)
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=optim.betas, eps=optim.eps,
            fused=True,  # one pass over each parameter, on CUDA and on a CPU, and no temporaries
        )  # fmt: skip
        self.schedule = LambdaLR(self.optimizer, lambda update: lr_factor(update, total_updates, optim))

    def update(
        self,
        groups: Sequence[Group],
        *,
        penalty: torch.Tensor | None = None,
        reward: torch.Tensor | None = None,
        completed: Callable[[UpdateResult], None] = lambda result: None,
    ) -> UpdateResult:
        """One optimiser step on the trajectories of `groups`.

        penalty: (n,) psi of each trajectory, nats; reward: (n,), normalised within its group. None is zeros.
        completed: is told the result before a signal can end the program, so that no update is done and not known.
        Where a loss or a gradient is not finite, nothing is stepped: weights, moments, schedule and log_z stay, and
        the result says so in `skipped`. Raises NonFiniteError where this happens more than optim.max_skips times in a
        row.
        """
        result, norms = self._backward(groups, penalty, reward)
        with deferred_interrupt():  # or half of the weights could be updated
            if result.skipped:
                self._skip(result)
            else:
                with _timed(result.seconds, "train", self.policy.device):
                    self._step(norms)
            completed(result)
        return result

    def examine(
        self, groups: Sequence[Group], *, penalty: torch.Tensor | None = None, reward: torch.Tensor | None = None
    ) -> UpdateResult:
        """What `update` would see, without its step. The gradient stays with the parameters, unclipped."""
        return self._backward(groups, penalty, reward)[0]

    def _backward(
        self, groups: Sequence[Group], penalty: torch.Tensor | None, reward: torch.Tensor | None
    ) -> tuple[UpdateResult, list[torch.Tensor]]:
        """Everything up to the gradient. Returns its norms, too: the policy's, then of what trains beside it."""
        seconds: dict[str, float] = {}
        device = self.policy.device
        share = Share.of(self.policy, groups, self.config.batch.tokens_per_microbatch)
        with _timed(seconds, "score", device):
            base_tokens = [self._base_logprobs(batch) for batch, _ in share.batches()]
            facts = self._facts(groups, share, base_tokens, penalty, reward)
        result = self._known_result(share, facts, base_tokens, seconds)
        if problem := unusable(facts, self._unknown):  # which all ranks find alike
            seconds["train"] = 0.0
            return replace(result, skipped=problem), []
        head = None if self.updates else self.log_z_head  # an objective may set its start in the first update
        head_before = {} if head is None else {name: tensor.clone() for name, tensor in head.state_dict().items()}
        with _timed(seconds, "score", device):
            loss_of = self.objective.losses(self.policy, facts)
        with _timed(seconds, "train", device):
            outputs = self._accumulated(loss_of, share)
            loss = self._sum_over_ranks(float(sum(output.loss for output in outputs)))
            norms = [_gradient_norm(parameters) for parameters in self._bounded]
            of_groups = [float(whole(norm)) for norm in norms]
        problem = not_finite(loss, of_groups)
        if problem and head is not None:
            head.load_state_dict(head_before)
        computed: dict[str, Any] = {
            name: share.flat([getattr(output, name) for output in outputs]).cpu() for name in OF_THE_POLICY
        }
        tokens = share.split([output.token_logprob for output in outputs])
        result = replace(result, loss=loss, grad_norm=of_groups[0], token_logprobs=tokens, skipped=problem, **computed)
        return result, norms

    def free_gradients(self) -> None:
        """Give the memory of the last update's gradients back."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def log_z_head(self) -> torch.nn.Module | None:
        """The network that is trained beside the policy; None without one."""
        return getattr(self.objective, "log_z_head", None)

    @property
    def updates(self) -> int:
        """Optimiser updates done so far."""
        return self.schedule.last_epoch

    def _base_logprobs(self, batch: PackedBatch) -> Float[Tensor, " N"]:
        if self.base is None:
            return torch.full(batch.targets.shape, math.nan, device=batch.targets.device)
        return token_logprobs(self.base, batch)

    def _facts(
        self,
        groups: Sequence[Group],
        share: Share,
        base_tokens: Sequence[torch.Tensor],
        penalty: torch.Tensor | None,
        reward: torch.Tensor | None,
    ) -> Facts:
        device, drops = self.policy.device, self.config.objective.truncated == "drop"
        tokens = KnownTokens(self.policy, share, groups, base_tokens)
        length = torch.tensor(share.lengths, dtype=torch.float64, device=device)
        left_out = [drops and entry.finish_reason == "length" for entry in flatten(groups)]
        return Facts(
            length=length,
            group=group_index(groups).to(device),
            base_logprob=share.flat([sum_per_sequence(*pair) for pair in zip(base_tokens, share.own, strict=False)]),
            behaviour_logprob=behaviour_logprob(groups).to(device),
            penalty=torch.zeros_like(length) if penalty is None else penalty.to(length),
            reward=torch.zeros_like(length) if reward is None else reward.to(length),
            known_tokens=lambda: tokens,
            left_out=torch.tensor(left_out, dtype=torch.bool, device=device),
        )

    def _known_result(
        self, share: Share, facts: Facts, base_tokens: Sequence[torch.Tensor], seconds: dict[str, float]
    ) -> UpdateResult:
        """What is known before the policy runs; the rest is NaN."""
        unknown: dict[str, Any] = {
            name: torch.full(facts.length.shape, math.nan, dtype=torch.float64) for name in OF_THE_POLICY
        }
        return UpdateResult(
            loss=math.nan,
            grad_norm=math.nan,
            lr=float(self.schedule.get_last_lr()[0]),
            length=facts.length.cpu(),
            group=facts.group.cpu(),
            base_logprob=facts.base_logprob.cpu(),
            behaviour_logprob=facts.behaviour_logprob.cpu(),
            token_logprobs=[np.full(length, np.nan, dtype=np.float32) for length in share.lengths],
            base_token_logprobs=share.split(base_tokens),
            microbatches=len(share),
            tokens=share.tokens,
            seconds=seconds,
            **unknown,
        )

    def _accumulated(self, loss_of: LossOfMicrobatch, share: Share) -> list[MicrobatchLoss]:
        """Forward and backward of all micro-batches, from no gradient on."""
        self.policy.model.train()
        self.free_gradients()
        outputs = [self._accumulate(loss_of, *entry) for entry in share.batches()]
        self._sum_own_gradients()
        return outputs

    def _accumulate(self, loss_of: LossOfMicrobatch, batch: PackedBatch, counts: bool) -> MicrobatchLoss:
        """Forward and backward of one micro-batch. counts: False where it only keeps step with other ranks."""

        def forward() -> tuple[torch.Tensor, MicrobatchLoss]:
            output = loss_of(self.policy.hidden_states(batch), batch)
            return output.loss if counts else 0 * output.loss, output

        loss, output = self.policy.run(forward)
        loss.backward()
        return replace(output, loss=loss.detach())

    def _step(self, norms: list[torch.Tensor]) -> None:
        """Clip and step. norms: of the gradient, for the policy, then for what trains beside it."""
        for parameters, norm, limit in zip(self._bounded, norms, self._limits(norms), strict=True):
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        self.optimizer.step()
        self.schedule.step()
        self.policy.version += 1
        self.skips = self.skips.ended()

    @property
    def _own_rate(self) -> bool:
        """Whether what trains beside the policy has a learning rate and a gradient bound of its own."""
        return self.config.released.log_z_rate == "own"

    def _limits(self, norms: list[torch.Tensor]) -> list[float]:
        """The largest norm that each of them may have; its share of one bound where they share it."""
        bound = self.config.optim.max_grad_norm
        if self._own_rate:
            return [bound] * len(norms)
        of_groups = [float(whole(norm)) for norm in norms]
        return [bound * norm / max(math.hypot(*of_groups), 1e-30) for norm in of_groups]

    def _skip(self, result: UpdateResult) -> None:
        """Leave everything as it was. Raises NonFiniteError for the last straw."""
        self.free_gradients()
        if self.skips.in_a_row >= self.config.optim.max_skips:
            raise last_straw(result, self.updates + 1, self.skips)
        self.skips = self.skips.one_more()

    def _sum_over_ranks(self, number: float) -> float:
        return float(self.policy.ranks.sum(torch.tensor(number, dtype=torch.float64)))

    def _sum_own_gradients(self) -> None:
        """Add up over the ranks the gradients of what trains beside the policy, which every rank holds whole."""
        ranks = self.policy.ranks
        for parameter in self.objective.parameters() if ranks.count > 1 else ():
            if ranks.any(parameter.grad is not None):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = ranks.sum(gradient)


def decayed_groups(parameters: Sequence[torch.nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of an optimiser: matrices decay; vectors do not, which are biases and the scales of norms."""
    if not weight_decay:
        return [{"params": parameters, "lr": lr, "weight_decay": 0.0}]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": members, "lr": lr, "weight_decay": decay} for members, decay in groups if members]


def lr_factor(update: int, total_updates: int, settings: OptimConfig) -> float:
    """Share of the peak learning rate at an update: linear warm-up, then the chosen course.

    It reaches `final_lr_ratio` after the last update, number total_updates - 1: with a ratio of 0 that one learns.
    """
    if update < settings.warmup_updates:
        return (update + 1) / settings.warmup_updates
    progress = (update - settings.warmup_updates) / max(total_updates - settings.warmup_updates, 1)
    progress = min(progress, 1.0)
    if settings.schedule == "constant":
        return 1.0
    remaining = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * remaining


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str, device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type == "cuda":  # launches return before their work is done
        torch.cuda.synchronize(device)
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def _gradient_norm(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
