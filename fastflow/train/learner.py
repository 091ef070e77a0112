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

import torch
from torch.optim.lr_scheduler import LambdaLR

from fastflow.config.schema import Config, OptimConfig
from fastflow.data.packing import PackedBatch
from fastflow.data.trajectory import Group, flatten
from fastflow.data.update import UpdateResult
from fastflow.errors import FastflowError
from fastflow.interrupt import deferred_interrupt
from fastflow.models.packed import AdaptersOff, PackedModel
from fastflow.models.parallel import whole
from fastflow.models.scoring import behaviour_logprob, group_index, sum_per_sequence, token_logprobs
from fastflow.models.share import Share
from fastflow.objectives.by_name import make_objective
from fastflow.objectives.known_tokens import KnownTokens
from fastflow.objectives.objective import Facts, LossOfMicrobatch, MakeObjective, MicrobatchLoss


class NonFiniteError(FastflowError):
    """The loss or the gradient is NaN or infinite; the policy still has its last finite weights."""


class Learner:
    """Holds policy, base, log_z head and optimiser, and turns groups of trajectories into updates.

    total_updates: the updates that the learning-rate schedule spans. objective: makes the one that gives the loss.
    """

    def __init__(
        self,
        policy: PackedModel,
        base: PackedModel | AdaptersOff,
        config: Config,
        *,
        total_updates: int,
        objective: MakeObjective = make_objective,
    ):
        self.policy = policy
        self.base = base
        self.config = config
        self.objective = objective(config, policy)
        optim = config.optim
        trained = [{"params": policy.parameters(), "lr": optim.lr}]
        if own := self.objective.parameters():
            trained.append({"params": own, "lr": optim.log_z_lr})
        self.optimizer = torch.optim.AdamW(
            trained, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay,
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

        penalty: (n,) psi of each trajectory, nats per token; reward: (n,), normalised within its group. None is zeros.
        completed: is told the result before a signal can end the program, so that no update is done and not known.
        Raises NonFiniteError, before the weights change, when the loss or the gradient is not finite.
        """
        seconds: dict[str, float] = {}
        device = self.policy.device
        share = Share.of(self.policy, groups, self.config.batch.tokens_per_microbatch)
        with _timed(seconds, "score", device):
            base_tokens = [token_logprobs(self.base, batch) for batch, _ in share.batches()]
            facts = self._facts(groups, share, base_tokens, penalty, reward)
            loss_of = self.objective.losses(self.policy, facts)
        with contextlib.ExitStack() as until_it_is_told:
            with _timed(seconds, "train", device):
                self.policy.model.train()
                self.free_gradients()
                outputs = [self._accumulate(loss_of, *entry) for entry in share.batches()]
                until_it_is_told.enter_context(deferred_interrupt())  # or half of the weights could be updated
                loss, grad_norm, lr = self._step(outputs)

            def flat(values: list[torch.Tensor]) -> torch.Tensor:
                return share.flat(values).cpu()

            result = UpdateResult(
                loss=loss,
                grad_norm=grad_norm,
                lr=lr,
                length=facts.length.cpu(),
                group=facts.group.cpu(),
                logprob=flat([output.logprob for output in outputs]),
                base_logprob=facts.base_logprob.cpu(),
                behaviour_logprob=facts.behaviour_logprob.cpu(),
                residual=flat([output.residual for output in outputs]),
                log_z=flat([output.log_z for output in outputs]),
                weight=flat([output.weight for output in outputs]),
                raw_ratio=flat([output.raw_ratio for output in outputs]),
                token_logprobs=share.split([output.token_logprob for output in outputs]),
                base_token_logprobs=share.split(base_tokens),
                microbatches=len(share),
                tokens=share.tokens,
                seconds=seconds,
            )
            completed(result)
        return result

    def free_gradients(self) -> None:
        """Give the memory of the last update's gradients back."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def updates(self) -> int:
        """Optimiser updates done so far."""
        return self.schedule.last_epoch

    def _facts(
        self,
        groups: Sequence[Group],
        share: Share,
        base_tokens: Sequence[torch.Tensor],
        penalty: torch.Tensor | None,
        reward: torch.Tensor | None,
    ) -> Facts:
        device = self.policy.device
        tokens = KnownTokens(self.policy, share, groups, base_tokens)
        length = torch.tensor([len(entry) for entry in flatten(groups)], dtype=torch.float64, device=device)
        return Facts(
            length=length,
            group=group_index(groups).to(device),
            base_logprob=share.flat([sum_per_sequence(*pair) for pair in zip(base_tokens, share.own, strict=False)]),
            behaviour_logprob=behaviour_logprob(groups).to(device),
            penalty=torch.zeros_like(length) if penalty is None else penalty.to(length),
            reward=torch.zeros_like(length) if reward is None else reward.to(length),
            known_tokens=lambda: tokens,
        )

    def _accumulate(self, loss_of: LossOfMicrobatch, batch: PackedBatch, counts: bool) -> MicrobatchLoss:
        """Forward and backward of one micro-batch. counts: False where it only keeps step with other ranks."""

        def forward() -> tuple[torch.Tensor, MicrobatchLoss]:
            output = loss_of(self.policy.hidden_states(batch), batch)
            return output.loss if counts else 0 * output.loss, output

        loss, output = self.policy.run(forward)
        loss.backward()
        return replace(output, loss=loss.detach())

    def _step(self, outputs: list[MicrobatchLoss]) -> tuple[float, float, float]:
        """Clip, check and step. Returns loss, gradient norm of the policy before clipping, and learning rate."""
        self._sum_own_gradients()
        loss = self._sum_over_ranks(float(sum(output.loss for output in outputs)))
        norms = [
            float(whole(torch.nn.utils.clip_grad_norm_(trained["params"], self.config.optim.max_grad_norm)))
            for trained in self.optimizer.param_groups
        ]
        if not all(math.isfinite(value) for value in (loss, *norms)):
            self.free_gradients()
            raise NonFiniteError(
                f"the loss is {loss:g} and the gradient norm {' and '.join(f'{norm:g}' for norm in norms)} (policy"
                f"{', log_z' if len(norms) > 1 else ''}) in update {self.updates + 1}; "
                "the weights were left as they were: lower optim.lr or optim.max_grad_norm, or check the model for NaN"
            )
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.policy.version += 1
        return loss, norms[0], lr

    def _sum_over_ranks(self, number: float) -> float:
        return float(self.policy.ranks.sum(torch.tensor(number, dtype=torch.float64)))

    def _sum_own_gradients(self) -> None:
        """Add up over the ranks the gradients of what trains beside the policy, which every rank holds whole."""
        ranks = self.policy.ranks
        for parameter in self.objective.parameters() if ranks.count > 1 else ():
            if ranks.any(parameter.grad is not None):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = ranks.sum(gradient)


def lr_factor(update: int, total_updates: int, settings: OptimConfig) -> float:
    """Share of the peak learning rate at an update: linear warm-up, then the chosen course to `final_lr_ratio`."""
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
    seconds[phase] = time.perf_counter() - start
