"""Settings that contradict each other: each is an error that says which, and what to do."""

from __future__ import annotations

from fastflow.config.loss_sections import ImportanceConfig, ObjectiveConfig, SurrogateConfig
from fastflow.config.methods import (
    LIKELIHOOD_GRADIENTS,
    OFFLINE,
    POLICY_GRADIENTS,
    RESPONSE_FIELD,
    REWARD_BALANCES,
    REWARD_GRADIENTS,
    TAKE_A_REWARD,
)
from fastflow.config.model_sections import LoraConfig, ModelConfig
from fastflow.config.released import ReleasedConfig
from fastflow.config.sections import (
    EVALUATED,
    GYM,
    BatchConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    RolloutConfig,
    RunConfig,
)
from fastflow.config.setting import Section
from fastflow.errors import FastflowError

_SERVES = {  # the methods that read a setting, where they are not all
    "objective.beta": REWARD_BALANCES,
    "objective.flowrl_form": ("flowrl",),
    "objective.empo_unparsed": ("empo",),
    "objective.rent_unanswered": ("rent",),
    "objective.ttrl_trained": ("ttrl",),
    "objective.distil_average": ("distil",),
    "released.token_mask": ("powerflow",),
    "released.log_z_offset": ("powerflow",),
}
_NO_USE_OFFLINE = {  # beside the sections rollout and importance
    "objective.log_z": "has no log_z: set it to learned where a preset gives it",
    "objective.reward": "reads no reward",
    "model.base": "loads no base",
    "eval.every": "has no sampler to answer with: ask the saves with fastflow evaluate",
}


def check_batch(batch: BatchConfig, objective: ObjectiveConfig) -> None:
    """Raise FastflowError for prompts that do not split into equal updates, and for groups that are too small."""
    if batch.prompts_per_step % batch.updates_per_rollout:
        raise FastflowError(
            f"batch.prompts_per_step = {batch.prompts_per_step} does not split into batch.updates_per_rollout = "
            f"{batch.updates_per_rollout} equal shares; make it a multiple"
        )
    if objective.log_z == "group_mean" and batch.responses_per_prompt < 2:
        raise FastflowError("objective.log_z = group_mean needs batch.responses_per_prompt of 2 or more, not 1")


def check_data(data: DataConfig) -> None:
    """Raise FastflowError for settings of the chat template or of reasoning-gym without it."""
    for name in ("system", "template_arguments"):
        if getattr(data, name) is not None and not data.chat_template:
            raise FastflowError(
                f"data.{name} is set but data.chat_template is off; switch the template on or drop data.{name}"
            )
    if data.gym is not None and not data.path.startswith(GYM):
        raise FastflowError(
            f"data.gym is set but data.path = {data.path!r} names no data set of reasoning-gym; write "
            "data.path = gym:NAME, or drop data.gym"
        )


def check_models(model: ModelConfig, lora: LoraConfig) -> None:
    """Raise FastflowError for two kinds of layers, a type that the residual stream cannot take, or two bases."""
    if model.fused_layers == "liger" and model.compile == "layers":
        raise FastflowError(
            "model.fused_layers = liger and model.compile = layers both replace the decoder layers' own code; keep "
            "one of them"
        )
    if model.residual_stream == "bfloat16" and model.dtype == "bfloat16":
        raise FastflowError(
            "model.residual_stream = bfloat16 adds nothing to model.dtype = bfloat16, whose residual stream has that "
            "type already; leave it out, or set model.dtype = float32 and model.autocast = true"
        )
    if model.residual_stream == "bfloat16" and not model.autocast:
        raise FastflowError(
            "model.residual_stream = bfloat16 needs model.autocast = true, under which layers put out bfloat16; set "
            "it, or leave model.residual_stream out"
        )
    if lora.rank and model.base is not None:
        raise FastflowError(
            "model.base and lora.rank are both set; with LoRA the base is the policy without its adapters"
        )


def check_rollout(rollout: RolloutConfig, importance: ImportanceConfig) -> None:
    """Raise FastflowError where the rollout contradicts itself, or the source of the behaviour log-probs."""
    if not rollout.samples_the_policy and importance.source == "rollout":
        raise FastflowError(
            "rollout.temperature and rollout.top_p other than 1, and rollout.top_k, rollout.min_p and "
            "rollout.min_response_tokens other than 0, sample from a different distribution than the policy, but the "
            "loss needs the policy's log-probs; set importance.source = recompute"
        )
    if rollout.min_response_tokens > rollout.max_response_tokens:
        raise FastflowError(
            f"rollout.min_response_tokens = {rollout.min_response_tokens} is over rollout.max_response_tokens = "
            f"{rollout.max_response_tokens}; lower the first or raise the second"
        )
    if any(not text for text in rollout.stop):
        raise FastflowError("rollout.stop holds an empty text, which would end every response at once; remove it")
    if rollout.ahead and rollout.engine == "local":
        raise FastflowError(
            "rollout.ahead = 1 needs a sampler with weights of its own: set rollout.engine = vllm or vllm-server"
        )
    if rollout.ahead and importance.source == "recompute":
        raise FastflowError(
            "rollout.ahead = 1 and importance.source = recompute contradict each other: the weights that sampled a "
            "response are gone before its log-probs could be recomputed; set importance.source = rollout"
        )
    if rollout.ahead and rollout.sleep not in ("auto", "off"):
        raise FastflowError(
            "rollout.ahead = 1 samples while the policy trains, so vLLM cannot sleep; set rollout.sleep = "
            f"off, not {rollout.sleep}"
        )
    if rollout.engine == "vllm-server" and not rollout.servers:
        raise FastflowError(
            "rollout.engine = vllm-server needs rollout.servers: addresses such as localhost:8000,other:8000"
        )


def check_evaluation(evaluation: EvalConfig, run: RunConfig, rollout: RolloutConfig) -> None:
    """Raise FastflowError where evaluation during training contradicts itself, or what is made of it."""
    best, such_as = run.best_metric, f"{EVALUATED}math500/avg@{evaluation.samples}"
    if best is not None and not best.startswith(EVALUATED):
        raise FastflowError(
            f"run.best_metric = {best} is no evaluation's; a step's own metrics are of the policy before its updates, "
            f"and it is saved after them: set eval.every and eval.tasks, and choose a metric such as {such_as}"
        )
    if evaluation.every and not evaluation.tasks:
        raise FastflowError(
            f"eval.every = {evaluation.every} needs eval.tasks: tasks such as math500,aime24, or JSONL files "
            "with `prompt` and `answer`"
        )
    if evaluation.temperature == 0 and evaluation.samples > 1:
        raise FastflowError(f"eval.temperature = 0 gives {evaluation.samples} equal responses; set eval.samples = 1")
    limit = evaluation.max_response_tokens or rollout.max_response_tokens
    if rollout.min_response_tokens > limit:
        raise FastflowError(
            f"rollout.min_response_tokens = {rollout.min_response_tokens} is over eval.max_response_tokens = "
            f"{limit}; lower the first or raise the second"
        )
    if best is not None and not evaluation.every:
        raise FastflowError(f"run.best_metric = {best} is an evaluation's, and eval.every = 0 makes none; set it")
    if evaluation.patience and best is None:
        raise FastflowError(
            f"eval.patience = {evaluation.patience} compares evaluations; set eval.every, and run.best_metric to "
            f"one's metric such as {such_as}"
        )


def needs_base(objective: ObjectiveConfig, surrogate: SurrogateConfig) -> bool:
    """Whether the loss, or a reward, holds log p_base."""
    return objective.name not in (*REWARD_GRADIENTS, *OFFLINE) or surrogate.kl > 0


def check_method(
    objective: ObjectiveConfig, surrogate: SurrogateConfig, importance: ImportanceConfig, batch: BatchConfig
) -> None:
    """Raise FastflowError where the method that objective.name names contradicts other settings."""
    name = objective.name
    if objective.format_pattern is not None and objective.format_check is not None:
        raise FastflowError("objective.format_pattern and objective.format_check are both set; keep one of them")
    _check_served(objective, name)
    if name in TAKE_A_REWARD and objective.reward is None:
        raise FastflowError(
            f"objective.name = {name} needs objective.reward = answer (the record's answer) or package.module:function"
        )
    if name in POLICY_GRADIENTS and name not in TAKE_A_REWARD and objective.reward is not None:
        raise FastflowError(
            f"objective.name = {name} makes its own reward, so objective.reward = {objective.reward} would be ignored; "
            "leave it out, or set objective.name = grpo"
        )
    if name == "format_reward" and objective.format_pattern is None and objective.format_check is None:
        raise FastflowError(
            "objective.name = format_reward rewards well-formed responses; set objective.format_pattern or "
            "objective.format_check, which say what that is"
        )
    if name == "tba" and objective.log_z != "group_mean":
        raise FastflowError(
            "objective.name = tba takes log_z from the group; set objective.log_z = group_mean, or objective.name = "
            "flowrl"
        )
    if name in POLICY_GRADIENTS:
        _check_surrogate(objective, surrogate, importance, batch)
        return
    for setting in surrogate.changed():
        raise FastflowError(
            f"{setting} serves the policy gradients ({', '.join(POLICY_GRADIENTS)}), and objective.name = {name} is "
            "none of them; leave it out"
        )


def check_base(model: ModelConfig, objective: ObjectiveConfig, surrogate: SurrogateConfig) -> None:
    """Raise FastflowError where no base is to be loaded, and something reads it."""
    if surrogate.score_base:
        return
    if needs_base(objective, surrogate):
        reader = f"surrogate.kl = {surrogate.kl:g}" if surrogate.kl else f"objective.name = {objective.name}"
        raise FastflowError(f"surrogate.score_base = false loads no base, and {reader} reads it; leave score_base out")
    if model.base is not None:
        raise FastflowError(
            f"surrogate.score_base = false loads no base, but model.base = {model.base}; drop one of them"
        )


def check_released(released: ReleasedConfig, objective: ObjectiveConfig, optim: OptimConfig) -> None:
    """Raise FastflowError for switches of the released code that the method does not read."""
    _check_served(released, objective.name)
    for setting in released.changed():
        if setting.startswith("released.log_z") and not objective.trains_log_z:
            reason = "name" if objective.log_z == "learned" else "log_z"
            held = f"objective.{reason} = {getattr(objective, reason)}"
            raise FastflowError(
                f"{setting} serves the learned log_z, which {held} does not have; leave one of them out"
            )
    if released.log_z_rate == "policy" and "optim.log_z_lr" in optim.changed():
        raise FastflowError(
            f"released.log_z_rate = policy takes optim.lr for log_z, so that optim.log_z_lr = {optim.log_z_lr:g} would "
            "be ignored; leave one of them out"
        )


def check_offline(
    objective: ObjectiveConfig, data: DataConfig, rollout: RolloutConfig, importance: ImportanceConfig,
    model: ModelConfig, evaluation: EvalConfig,
) -> None:  # fmt: skip
    """Raise FastflowError for what says how responses are sampled or weighed where none is sampled, and for the
    reverse.
    """
    name = objective.name
    if name not in OFFLINE:
        if data.response_field != RESPONSE_FIELD:
            raise FastflowError(
                f"data.response_field serves {', '.join(OFFLINE)} alone, and objective.name = {name} samples its own "
                "responses; leave it out"
            )
        return
    for setting in (*rollout.changed(), *importance.changed()):
        if setting != "rollout.max_response_tokens":
            raise FastflowError(
                f"{setting} has no meaning with objective.name = {name}, which samples nothing and learns from the "
                "responses in data.path; leave it out"
            )
    for setting, value in {**objective.changed(), **model.changed(), **evaluation.changed()}.items():
        if setting in _NO_USE_OFFLINE:
            raise FastflowError(
                f"{setting} = {value} is set, but objective.name = {name} {_NO_USE_OFFLINE[setting]}; leave it out"
            )


def _check_served(section: Section, name: str) -> None:
    """Raise FastflowError for a setting of other methods than the one of this name."""
    for setting in section.changed():
        methods = _SERVES.get(setting, (name,))
        if name not in methods:
            raise FastflowError(
                f"{setting} serves {' and '.join(methods)} alone, and objective.name is {name}; leave it out, or set "
                f"objective.name = {' or '.join(methods)}"
            )


def _check_surrogate(
    objective: ObjectiveConfig, surrogate: SurrogateConfig, importance: ImportanceConfig, batch: BatchConfig
) -> None:
    name = objective.name
    if batch.responses_per_prompt < 2:
        raise FastflowError(
            f"objective.name = {name} compares the responses of a group; set batch.responses_per_prompt to 2 or more, "
            "not 1"
        )
    if objective.ttrl_trained == 1 or objective.ttrl_trained > batch.responses_per_prompt:
        raise FastflowError(
            f"objective.ttrl_trained = {objective.ttrl_trained} must be 2 or more, and not above the "
            f"batch.responses_per_prompt = {batch.responses_per_prompt} that vote; 0 trains on all"
        )
    if importance.ratio != "sequence":
        raise FastflowError(
            f"importance.ratio serves trajectory balance, and objective.name = {name} reads surrogate.ratio; set that "
            "instead"
        )
    if name in LIKELIHOOD_GRADIENTS:
        if surrogate.average == "sequence_mean":
            raise FastflowError(
                f"surrogate.average = sequence_mean divides by each response's length, so that objective.name = {name} "
                "would follow no gradient of its objective; set surrogate.average = token_mean or length_limit"
            )
        if surrogate.kl:
            raise FastflowError(
                f"surrogate.kl = {surrogate.kl:g} adds to the KL that objective.name = {name} holds already; leave it "
                "out, and choose its weight by objective.alpha = 1 + 1 / weight"
            )
