"""Computes a skipped update again, up to its gradient, and finds what in it is not finite."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastflow.config.methods import OFFLINE
from fastflow.config.reader import SETTINGS_FILE, read_config
from fastflow.config.schema import Config
from fastflow.counted import counted
from fastflow.data.update import UpdateResult
from fastflow.errors import FastflowError
from fastflow.models.opening import load_models, load_policy
from fastflow.objectives.by_name import make_objective
from fastflow.objectives.objective import MakeObjective
from fastflow.replay.file import BadUpdate, read_bad_update
from fastflow.run import generators
from fastflow.run.checkpoints import Checkpoints
from fastflow.train.bad_updates import DECIDING, digest_of_settings
from fastflow.train.finite import unknown_facts
from fastflow.train.learner import Learner
from fastflow.train.saves.checkpoint import named_parameters
from fastflow.train.saves.restore import read, restore

LARGEST = torch.finfo(torch.float32).max  # of a loss
OF_RESPONSES = {  # values of each response -> words
    "base_logprob": "log p_base",
    "behaviour_logprob": "the sampler's log-prob",
    "penalty": "penalty",
    "reward": "reward",
    "logprob": "log pi",
    "log_z": "log_z",
    "residual": "residual",
    "importance": "importance weight",
}
FACTS = tuple(OF_RESPONSES)[:4]  # known before the policy runs


@dataclass(frozen=True)
class BadResponse:
    """A response that makes the loss non-finite. prompt, response: counted from 1, the response within its prompt.
    values: what of it is not finite, or too large to be squared, in words.
    """

    prompt: int
    response: int
    tokens: int
    values: tuple[str, ...]


@dataclass(frozen=True)
class BadGradient:
    """A trained tensor whose gradient is not finite. bad: how many of its `entries`."""

    name: str
    bad: int
    entries: int


@dataclass(frozen=True)
class Replay:
    """batch: as it was kept. now: the same computed again. weights: which ones, in words. notes: what differs from the
    run. responses, gradients: what is not finite now.
    """

    batch: BadUpdate
    now: UpdateResult
    weights: str
    notes: list[str]
    responses: list[BadResponse]
    gradients: list[BadGradient]

    @property
    def finite(self) -> bool:
        return not self.now.skipped


def replay(
    file: Path,
    *,
    run: Path | None = None,
    model: str | None = None,
    device: str | None = None,
    objective: MakeObjective = make_objective,
) -> Replay:
    """Compute the update in a file of RUN/bad again, up to its gradient. Nothing of the run is changed.

    run: its directory, by default the file's. model: a directory with the policy's weights, by default the newest save.
    device: by default that of the run. objective: see Learner. Raises FastflowError for what cannot be read.
    """
    batch = read_bad_update(file)
    run = run or file.resolve().parent.parent
    config = _settings(run, device)
    notes = []
    if digest_of_settings(config) != batch.about["settings"]:
        sections = ", ".join(DECIDING)
        notes.append(f"settings of {sections} or rollout.max_response_tokens are no longer those of that update")
    if config.lora.dropout:
        notes.append("lora.dropout is left out, so that the numbers are near those of the run")
    learner, weights = _learner(run, config, model, objective, batch, notes)
    if objective is make_objective and batch.about["objective"] != type(learner.objective).__name__:
        notes.append(
            f"the run's loss was {batch.about['objective']}, an objective of its own; this is the loss that the "
            "settings name (call fastflow.replay.recompute.replay with objective= for the other)"
        )
    ids = torch.cat(list(_ids(batch)))
    if int(ids.max()) >= learner.policy.vocab_size:
        raise FastflowError(
            f"{file} holds the token {int(ids.max())}, and the model has {learner.policy.vocab_size} tokens; they do "
            "not belong together: check --run and --model"
        )
    now = learner.examine(batch.groups, penalty=batch.penalty, reward=batch.reward)
    unknown = (*unknown_facts(config), *(("log_z",) if config.objective.name in OFFLINE else ()))
    return Replay(batch, now, weights, notes, _bad_responses(batch, now, unknown), _bad_gradients(learner))


def _settings(run: Path, device: str | None) -> Config:
    settings = run / SETTINGS_FILE
    if not settings.is_file():
        raise FastflowError(
            f"{run} is no run of fastflow: it has no {SETTINGS_FILE}; give the run's directory as --run"
        )
    config, _ = read_config(["--config", str(settings)])
    config.require_inputs()
    return replace(config, model=replace(config.model, device=device or config.model.device))


def _learner(
    run: Path, config: Config, model: str | None, objective: MakeObjective, batch: BadUpdate, notes: list[str]
) -> tuple[Learner, str]:
    """A learner with the weights to compute with, and which they are, in words."""
    if model is not None:
        start = (config.model.base or config.model.path) if config.reads_base else None
        config = replace(config, model=replace(config.model, path=model, base=start), lora=replace(config.lora, rank=0))
    generators.seed(config.run.seed)
    config = replace(config, lora=replace(config.lora, dropout=0.0))  # what it drew is not known
    if config.reads_base:
        policy, base = load_models(config.model, config.lora)
    else:
        policy, base = load_policy(config.model, config.lora), None
    learner = Learner(policy, base, config, total_updates=1, objective=objective)
    if model is not None:
        if learner.log_z_head is not None:
            notes.append("log_z is not that of the run: it starts at this batch's optimum")
        return learner, f"in {model}"
    save = Checkpoints(run).whole_after(batch.about["updates"])
    if save is None:
        return learner, f"that the run started with ({run} has no whole save)"
    restore(read(save.path), learner)
    apart = batch.about["updates"] - save.updates
    of = f"{save.path} ({counted(save.updates, 'update')})"
    if apart:
        return learner, f"of {of}, {counted(abs(apart), 'update')} {'before' if apart > 0 else 'after'} the skipped one"
    return learner, f"of {of}, which are those of the skipped update"


def _ids(batch: BadUpdate) -> Iterator[torch.Tensor]:
    for group in batch.groups:
        yield torch.from_numpy(group.prompt.ids)
        yield from (torch.from_numpy(entry.response_ids) for entry in group.trajectories)


def _bad_responses(batch: BadUpdate, now: UpdateResult, unknown: Collection[str] = ()) -> list[BadResponse]:
    """What of each response is not finite, or has a square that is not. Values that were not computed do not count.

    unknown: values that the method never has.
    """
    places = [(at, of) for at, group in enumerate(batch.groups, 1) for of in range(1, len(group.trajectories) + 1)]
    values = {name: getattr(batch if name in ("penalty", "reward") else now, name) for name in OF_RESPONSES}
    values = {name: one for name, one in values.items() if name not in unknown}
    facts = {name: one for name, one in values.items() if name in FACTS}
    if not all(bool(one.isfinite().all()) for one in facts.values()):  # and the policy never ran
        values = facts
    too_large = now.residual.isfinite() & (now.residual**2 * now.importance.clamp(min=1) > LARGEST)
    found = []
    for index, (prompt, response) in enumerate(places):
        words = [
            f"{OF_RESPONSES[name]} is {float(one[index]):g}"
            for name, one in values.items()
            if not bool(one[index].isfinite())
        ]
        if bool(too_large[index]):
            words.append(f"residual is {float(now.residual[index]):.3g}, and its weighted square overflows")
        if words:
            found.append(BadResponse(prompt, response, int(now.length[index]), tuple(words)))
    return found


def _bad_gradients(learner: Learner) -> list[BadGradient]:
    found = []
    for name, parameter in named_parameters(learner).items():
        if parameter.grad is not None and (bad := int((~parameter.grad.isfinite()).sum())):
            found.append(BadGradient(name, bad, parameter.numel()))
    return found
