"""The same update as a user writes it in plain transformers and PyTorch, with a head to choose."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.steps.clock import PhaseClock
from bench.steps.padding import PaddedBatch, padded_batches
from bench.steps.settings import Outcome, StepSettings
from fastflow.data.trajectory import Group, flatten
from fastflow.models.scoring import behaviour_logprob, group_index
from fastflow.objectives.log_z import group_mean
from fastflow.objectives.objective import Evidence
from fastflow.objectives.trajectory_balance import OBJECTIVES
from fastflow.train.finite import NonFiniteError

LogprobHead = Callable[[torch.nn.Module, Tensor, PaddedBatch, bool], Tensor]  # model, hidden, batch, trains -> (B, R)

BYTES_PER_LOGIT = 16  # in the type of the product, in float32, their log-softmax, its gradient, that of the product


def materialised_head(model: torch.nn.Module, hidden: Tensor, batch: PaddedBatch, trains: bool) -> Tensor:
    """All logits of the response places at once, softmax in float32."""
    logits = model.lm_head(hidden[:, -batch.responses - 1 : -1]).float()
    return torch.log_softmax(logits, dim=-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)


class PaddedContestant:
    """Policy and base from transformers, untouched, with its own SDPA attention; fused AdamW from torch.

    logit_bytes: memory that a batch's logits may take, for heads that hold them. by_length: see padded_batches.
    """

    def __init__(
        self,
        settings: StepSettings,
        note: str,
        head: LogprobHead = materialised_head,
        *,
        logit_bytes: float = math.inf,
        by_length: bool = False,
    ):
        self.settings, self.head, self.by_length, self.note = settings, head, by_length, note
        self.policy = _load(settings).train()
        self.base = _load(settings).eval().requires_grad_(False)
        if settings.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.logit_rows = logit_bytes / (BYTES_PER_LOGIT * self.policy.config.vocab_size)
        optim = settings.config.optim
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,  # the default of transformers' trainer, and so of TRL's
        )

    def halve_batches(self) -> bool:
        """After running out of memory: smaller batches from now on; False where they hold one sequence already."""
        if self.logit_rows < 1:
            return False
        self.logit_rows = min(self.logit_rows, self.settings.tokens_per_microbatch) / 2
        return True

    def update(self, groups: Sequence[Group], clock: PhaseClock) -> Outcome:
        batches = self._batches(groups, self.settings.device)
        terms = self._known_terms(groups, batches)
        losses = [self._accumulate(batch, terms, clock) for batch in batches]
        clock.enter("optimiser")
        loss, norm = float(sum(losses)), self._step()
        clock.enter("rest")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(f"the loss is {loss:g} and the gradient norm {norm:g}")
        self.optimizer.zero_grad(set_to_none=True)
        return Outcome(loss, norm, sum(batch.input_ids.numel() for batch in batches), len(batches))

    def slots(self, groups: Sequence[Group]) -> int:
        return sum(batch.input_ids.numel() for batch in self._batches(groups, torch.device("cpu")))

    def _batches(self, groups: Sequence[Group], device: torch.device) -> list[PaddedBatch]:
        return padded_batches(
            groups,
            device,
            most_slots=self.settings.tokens_per_microbatch,
            most_logit_rows=self.logit_rows,
            by_length=self.by_length,
        )

    def _known_terms(self, groups: Sequence[Group], batches: list[PaddedBatch]) -> dict[str, Tensor]:
        """(n,) float64 terms of the loss, base log-probs included."""
        device, objective = self.settings.device, self.settings.config.objective
        length = torch.tensor([len(entry) for entry in flatten(groups)], dtype=torch.float64, device=device)
        base_logprob = torch.empty_like(length)
        with torch.no_grad():
            for batch in batches:
                base_logprob[batch.sequences] = self._sums(self.base, batch, trains=False)
        zeros = torch.zeros_like(length)
        scale, target = OBJECTIVES[objective.name](Evidence(length, base_logprob, zeros, zeros), objective)
        behaviour = behaviour_logprob(groups).to(device)
        log_z = group_mean(target - scale * behaviour, group_index(groups).to(device))
        return {"length": length, "scale": scale, "target": target, "behaviour": behaviour, "log_z": log_z}

    def _accumulate(self, batch: PaddedBatch, terms: dict[str, Tensor], clock: PhaseClock) -> Tensor:
        clock.enter("forward")
        logprob = self._sums(self.policy, batch, trains=True, clock=clock)
        mine = {name: values[batch.sequences] for name, values in terms.items()}
        residual = mine["log_z"] + mine["scale"] * logprob - mine["target"]
        clip = self.settings.config.importance
        ratio = ((logprob.detach() - mine["behaviour"]) / mine["length"]).exp()
        weight = ratio.clamp(1 - clip.clip_low, 1 + clip.clip_high)
        loss = (weight * residual.square()).sum() / len(terms["length"])
        clock.enter("backward")
        loss.backward()
        return loss.detach()

    def _sums(self, model: torch.nn.Module, batch: PaddedBatch, *, trains: bool, clock: PhaseClock | None = None):
        """(B,) float64 log-probs of whole responses."""
        with torch.autocast(self.settings.device.type, torch.bfloat16, enabled=self.settings.autocast):
            body = model.get_decoder()
            hidden = body(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
            if clock is not None:
                clock.enter("loss")
            logprobs = self.head(model, hidden, batch, trains)
        return logprobs.masked_fill(~batch.response_mask, 0).double().sum(1)

    def _step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.config.optim.max_grad_norm)
        self.optimizer.step()
        return float(norm)


def _load(settings: StepSettings) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, settings.dtype)
    model = AutoModelForCausalLM.from_pretrained(settings.checkpoint, dtype=dtype, attn_implementation="sdpa")
    return model.to(settings.device)
