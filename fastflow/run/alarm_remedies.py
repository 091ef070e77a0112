"""What to do about an alarm, by the settings of the run: nothing that its method does not read, or has already."""

from __future__ import annotations

from collections.abc import Sequence

from fastflow.config.methods import POLICY_GRADIENTS, REWARD_GRADIENTS, WITHOUT_ALPHA
from fastflow.config.schema import Config


def collapsing_length(config: Config) -> str:
    if config.objective.name in REWARD_GRADIENTS:
        return _restrain(config, "see in samples whether the reward prefers short responses")
    of_its_target = config.objective.name not in ("powerflow", *WITHOUT_ALPHA)
    another = ("use objective.name = powerflow, whose target is per token",) if of_its_target else ()
    return _one_of(*another, _ask_for_format(config), "lower optim.lr")


def exploding_length(config: Config) -> str:
    if config.objective.name in REWARD_GRADIENTS:
        return _restrain(config, "see in samples whether the reward prefers long responses")
    return _one_of(_ask_for_format(config), "lower optim.lr")


def truncation(config: Config) -> str:
    more = "raise rollout.max_response_tokens"
    restrained = config.objective.name in REWARD_GRADIENTS
    return _restrain(config, more) if restrained else _one_of(more, _ask_for_format(config))


def repetition(config: Config) -> str:
    if config.objective.name in REWARD_GRADIENTS:
        return _restrain(config, "see in samples what the reward prefers")
    strength = "objective.beta" if config.objective.name in WITHOUT_ALPHA else "objective.alpha"
    return _one_of(_ask_for_format(config), f"lower {strength}")


def stale(config: Config) -> str:
    return _one_of(*_stay_closer(config))


def exploding_ratios(config: Config) -> str:
    kind = "surrogate.ratio" if config.objective.name in POLICY_GRADIENTS else "importance.ratio"
    ratio = config.surrogate.ratio if kind == "surrogate.ratio" else config.importance.ratio
    return _one_of(*_stay_closer(config), *([f"set {kind} = token_mean"] if ratio == "sequence" else []))


def mismatch(config: Config) -> str:
    both = "bring both to the same dtype"
    has_it = config.rollout.ahead or config.importance.source == "recompute"
    return both if has_it else f"set importance.source = recompute, or {both}"


def runaway_log_z(config: Config) -> str:
    read = "read samples: the base may find the responses very unlikely"
    if config.objective.log_z == "group_mean":
        return f"lower optim.lr, and {read}"
    rate = "optim.log_z_lr" if config.released.log_z_rate == "own" else "optim.lr"
    return f"lower {rate} or set objective.log_z = group_mean, and {read}"


def no_signal(config: Config) -> str:
    answers = "are answers found (objective.grader, data.suffix), and " if config.objective.compares_answers else ""
    return (
        f"read samples: {answers}do rewards differ? Otherwise raise batch.responses_per_prompt, or take other prompts"
    )


def dead_format(config: Config) -> str:
    pattern = "loosen objective.format_pattern" if config.objective.format_check is None else "check the function"
    return f"ask for the format in data.suffix, or {pattern}"


def skipped(config: Config) -> str:
    of_cut = "where every response was cut and dropped, raise rollout.max_response_tokens; otherwise "
    return (
        f"{of_cut if config.objective.truncated == 'drop' else ''}look into their batches in the run's folder bad with "
        "fastflow replay, and lower optim.lr or optim.max_grad_norm"
    )


def _ask_for_format(config: Config) -> str:
    """By the penalty psi, which the method reads."""
    if config.objective.format_pattern is None and config.objective.format_check is None:
        return "set objective.format_pattern"
    return "make objective.format_penalty more negative"


def _restrain(config: Config, first: str) -> str:
    """For a policy gradient that rewards alone drive."""
    kl = (f"{'raise' if config.surrogate.kl else 'set'} surrogate.kl",) if config.reads_base else ()
    return _one_of(first, "lower optim.lr", *kl)


def _stay_closer(config: Config) -> Sequence[str]:
    """To the policy that sampled: by less training between a rollout and its last update."""
    fewer = []
    if config.batch.updates_per_rollout > 1:
        fewer.append("lower batch.updates_per_rollout")
    if config.rollout.ahead:
        fewer.append("set rollout.ahead = 0")
    if not fewer and config.importance.source == "rollout":  # the same weights sampled: the sampler's log-probs differ
        return ("set importance.source = recompute",)
    return (*fewer, "lower optim.lr")


def _one_of(*ways: str) -> str:
    *others, last = ways
    return f"{', '.join(others)}, or {last}" if others else last
