"""What is said about a run before it begins, and when it ends."""

from __future__ import annotations

import torch

from fastflow.config.methods import WITHOUT_ALPHA
from fastflow.counted import counted
from fastflow.data.recorded import RecordedPrompt
from fastflow.data.recorded import describe as describe_recorded
from fastflow.models.layers.decoder_layers import recomputed_layers
from fastflow.models.layers.residual_stream import BFLOAT16
from fastflow.models.packed import FrozenModel, PackedModel
from fastflow.models.ranks import Ranks
from fastflow.objectives.flow import FlowObjective
from fastflow.objectives.likelihood import MaximumLikelihood
from fastflow.objectives.policy_gradient import PolicyGradient
from fastflow.run.checkpoints import CHECKPOINTS, name_of
from fastflow.train.curve import Best
from fastflow.train.trainer import Trainer
from fastflow_kernels import explain


def describe(trainer: Trainer) -> str:
    """What is about to run, in the units a reader thinks in."""
    config, policy = trainer.config, trainer.learner.policy
    batch = config.batch
    trained = sum(parameter.numel() for parameter in policy.parameters())
    responses = batch.prompts_per_step * batch.responses_per_prompt
    evaluated = ""
    if asked := trainer.evaluation.describe():
        evaluated = f"\nevaluated every {counted(config.eval.every, 'step')} on {asked}"
    stops = config.rollout.stop
    ends = f"\nresponses end at {' or '.join(map(repr, stops))}, or at the end token" if stops else ""
    several = describe_ranks(trainer.ranks)
    known = [prompt for prompt in trainer.prompts.all if isinstance(prompt, RecordedPrompt)]
    recorded = ""
    if known:
        recorded = f"{describe_recorded(known, batch.prompts_per_step, config.run.steps, batch.responses_per_prompt)}\n"
    return (
        f"{several}{describe_objective(trainer)} on "
        f"{config.model.path}: {trained:,} trained parameters on {policy.device}, attention {policy.kernel}\n"
        f"{describe_body(trainer)}\n"
        f"{describe_head(policy)}\n"
        f"{recorded}"
        f"{counted(config.run.steps, 'step')} of {counted(batch.prompts_per_step, 'prompt')} x "
        f"{counted(batch.responses_per_prompt, 'response')} = {counted(responses, 'response')}, "
        f"{counted(batch.updates_per_rollout, 'update')} per step on "
        f"{counted(responses // batch.updates_per_rollout, 'response')}, micro-batches of "
        f"{counted(batch.tokens_per_microbatch, 'token')}"
        f"{ends}{evaluated}"
    )


def describe_ranks(ranks: Ranks) -> str:
    """How the models are cut; nothing where they are not."""
    if ranks.count == 1:
        return ""
    if ranks.replicas == 1:
        return f"{ranks.count} ranks, each with a part of every weight\n"
    part = ranks.count // ranks.replicas
    share = f"1/{part} of every weight" if part > 1 else "all weights"
    return f"{ranks.count} ranks in {ranks.replicas} replicas, each rank with {share}\n"


def describe_head(policy: PackedModel) -> str:
    """Which kernels multiply by the head, and how much of it this rank has."""
    rows, cut = policy.head_rows(torch.empty(0, policy.hidden_size, device=policy.device)), policy.cut_head
    if cut is None:
        return f"kernels {explain(rows, policy.head()[0])}"
    kept = f"head cut over the ranks, at most {max(cut.sizes):,} of its {policy.vocab_size:,} rows on each"
    return f"{kept}\nkernels {explain(rows, cut.weight.detach(), shard=cut.shard)}"


def describe_best(trainer: Trainer, best: Best) -> str:
    """Which evaluation was the best by run.best_metric, and where its policy is."""
    said = f"best {trainer.config.run.best_metric}: {best.value:.4g}, after step {best.step}"
    save = trainer.directory / CHECKPOINTS / name_of(best.step, 0, inside=False)
    if best.step == 0:
        return f"{said}: the base, before any update"
    return f"{said}, in {save / 'policy'}" if save.is_dir() else said


def describe_objective(trainer: Trainer) -> str:
    """Which loss is taken: that of the settings, or another one's name."""
    objective, settings = trainer.learner.objective, trainer.config.objective
    if isinstance(objective, FlowObjective):
        released = [name.removeprefix("released.") for name in trainer.config.released.changed()]
        form = f"; as released: {', '.join(released)}" if released else ""
        power = f"beta {settings.beta:g}" if settings.name in WITHOUT_ALPHA else f"alpha {settings.alpha:g}"
        return f"{settings.name} at {power} (log_z {settings.log_z}{form})"
    if isinstance(objective, MaximumLikelihood):
        return f"{settings.name}, maximum likelihood ({settings.distil_average}) of recorded responses, without a base,"
    if isinstance(objective, PolicyGradient):
        surrogate = trainer.config.surrogate
        return f"{settings.name}, policy gradient (ratio {surrogate.ratio}, average {surrogate.average})"
    return type(objective).__name__


def describe_resumption(trainer: Trainer) -> str:
    """From where a run goes on."""
    at, steps = trainer.position, trainer.config.run.steps
    if at.updates == 0 and not trainer.resumed:
        return "there is no save to go on from: the run starts from its beginning"
    if at.step >= steps:
        return f"the run has done its {counted(steps, 'step')} already; raise run.steps to train on"
    inside = "" if at.under_way is None else f", after {counted(len(at.under_way.results), 'update')} of it"
    return f"going on with step {at.step + 1} of {steps}{inside}"


def describe_body(trainer: Trainer) -> str:
    """How the models' layers run, in what their residual stream is, and in what the base is held."""
    learner, share = trainer.learner, trainer.config.model.checkpoint_share
    parts = [f"layers {learner.policy.layers}"]
    if share:
        layers = learner.policy.causal_lm.config.num_hidden_layers
        parts.append(f"{recomputed_layers(layers, share)} of {layers} recomputed in the backward pass")
    if learner.policy.residual_stream == BFLOAT16:
        parts.append("residual stream in bfloat16")
    if isinstance(learner.base, FrozenModel):
        weights = list(learner.base.model.parameters())
        narrow = sum(weight.numel() for weight in weights if weight.dtype == torch.bfloat16)
        share = narrow / sum(weight.numel() for weight in weights)
        parts.append(f"{share:.0%} of the base in bfloat16" if narrow else "base in float32")
    return ", ".join(parts)
