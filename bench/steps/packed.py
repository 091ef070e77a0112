"""Our update: the trainer's own learner, its models and its packing, with marks between the phases."""

import contextlib
from collections.abc import Iterator, Sequence
from unittest import mock

from bench.steps.clock import PhaseClock
from bench.steps.settings import Outcome, StepSettings
from bench.steps.trajectories import sequence_lengths
from fastflow.data.trajectory import Group
from fastflow.models.opening import load_models
from fastflow.train.learner import Learner

TOTAL_UPDATES = 1000


class PackedContestant:
    """fastflow.train.learner.Learner as `fastflow train` makes it."""

    def __init__(self, settings: StepSettings):
        config = settings.config
        policy, base = load_models(config.model, config.lora)
        self.learner = Learner(policy, base, config, total_updates=TOTAL_UPDATES)
        self.note = (
            f"fastflow.train.learner on packed batches, attention by {policy.kernel}, {policy.layers} layers. "
            "The loss takes the head's gradient too."
            + "".join(f" model.{name} = {value}." for name, value in settings.ours.items())
        )

    def update(self, groups: Sequence[Group], clock: PhaseClock) -> Outcome:
        with _marks(self.learner, clock):
            result = self.learner.update(groups)
            self.learner.free_gradients()
        return Outcome(result.loss, result.grad_norm, result.tokens, result.microbatches)

    def slots(self, groups: Sequence[Group]) -> int:
        return sum(sequence_lengths(groups))


@contextlib.contextmanager
def _marks(learner: Learner, clock: PhaseClock) -> Iterator[None]:
    """The learner's steps, each with the mark of a phase before or after it; nothing else is changed."""
    policy = learner.policy
    hidden_states, flow_loss = policy.hidden_states, policy.flow_loss
    step, sum_own_gradients = learner._step, learner._sum_own_gradients

    def timed_hidden_states(batch):
        clock.enter("forward")
        hidden = hidden_states(batch)
        clock.enter("loss")
        return hidden

    def timed_flow_loss(*inputs, **options):
        output = flow_loss(*inputs, **options)
        clock.enter("backward")
        return output

    def timed_sum():
        clock.enter("optimiser")  # the gradient is there, and its norm comes next
        sum_own_gradients()

    def timed_step(norms):
        clock.enter("optimiser")
        found = step(norms)
        clock.enter("rest")
        return found

    with (
        mock.patch.object(policy, "hidden_states", timed_hidden_states),
        mock.patch.object(policy, "flow_loss", timed_flow_loss),
        mock.patch.object(learner, "_sum_own_gradients", timed_sum),
        mock.patch.object(learner, "_step", timed_step),
    ):
        yield
