"""Words of other trainers: the settings that they mean here, and those for which there is nothing here."""

from __future__ import annotations

_WORDS = {
    "model.path": "model policy model_name model_name_or_path model_path pretrained_model",
    "model.base": "ref reference ref_model reference_model base_model",
    "model.autocast model.dtype": "bf16 fp16 precision mixed_precision",
    "model.dtype": "torch_dtype",
    "model.residual_stream": "residual residual_dtype fp32_residual_connection",
    "model.attention": "attn_implementation",
    "model.fused_layers": "use_liger use_liger_kernel",
    "model.compile": "torch_compile",
    "model.checkpoint_share": "gradient_checkpointing activation_checkpointing",
    "lora.rank": "r lora_r lora_rank use_peft peft_config",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.targets": "target_modules lora_target_modules",
    "data.path": "data dataset dataset_name train_dataset train_file train_files",
    "data.split": "dataset_train_split",
    "data.subset": "dataset_config",
    "data.shuffle": "shuffle_dataset",
    "data.prompt_field": "prompt_key prompt_column",
    "data.max_prompt_tokens": "max_prompt_length",
    "data.template_arguments": "chat_template_kwargs",
    "data.system": "system_prompt",
    "rollout.engine": "vllm use_vllm vllm_mode rollout_name",
    "rollout.max_response_tokens": "max_tokens max_new_tokens max_completion_length max_response_length",
    "rollout.memory_fraction": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "rollout.stop": "stop_strings",
    "rollout.servers": "vllm_server_base_url vllm_server_host",
    "objective.name": "algorithm adv_estimator",
    "objective.reward": "reward_funcs reward_fn reward_function reward_model custom_reward_function "
    "custom_reward_function_path custom_reward_function_name",
    "objective.truncated": "mask_truncated_completions",
    "importance.clip_low importance.clip_high": "epsilon clip_range clip_ratio cliprange",
    "importance.clip_low": "epsilon_low clip_ratio_low",
    "importance.clip_high": "epsilon_high clip_ratio_high",
    "surrogate.ratio": "importance_sampling_level loss_mode",
    "surrogate.average": "loss_type loss_agg_mode",
    "surrogate.divide_by_std": "scale_rewards norm_adv_by_std_in_grpo",
    "surrogate.kl": "kl_coef kl_loss_coef use_kl_loss use_kl_in_reward init_kl_coef",
    "surrogate.kl objective.beta": "beta",
    "surrogate.kl_estimator": "kl_loss_type kl_penalty",
    "batch.prompts_per_step batch.responses_per_prompt batch.tokens_per_microbatch": "batch_size train_batch_size "
    "per_device_train_batch_size generation_batch_size micro_batch_size gradient_accumulation_steps",
    "batch.responses_per_prompt": "n num_generations num_return_sequences group_size",
    "batch.tokens_per_microbatch": "max_token_len_per_gpu ppo_max_token_len_per_gpu",
    "batch.updates_per_rollout": "ppo_mini_batch_size num_mini_batches steps_per_generation",
    "optim.lr": "learning_rate",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.warmup_updates": "warmup_steps warmup_ratio lr_warmup_steps",
    "optim.schedule": "lr_scheduler lr_scheduler_type",
    "optim.max_grad_norm": "grad_clip clip_grad",
    "run.steps": "epochs max_steps num_train_epochs total_epochs total_training_steps",
    "run.output": "output_dir save_dir default_local_dir",
    "run.overwrite": "overwrite_output_dir",
    "run.save_every": "save_freq save_steps save_interval",
    "run.keep": "save_total_limit max_actor_ckpt_to_keep",
    "run.best_metric": "load_best_model_at_end metric_for_best_model",
    "run.best_is": "greater_is_better",
    "run.samples_every run.samples_per_dump": "log_completions",
    "run.samples_per_dump": "num_completions_to_print log_val_generations",
    "run.tensorboard run.wandb": "report_to logger",
    "run.wandb": "wandb_project project_name",
    "eval.every": "eval_steps eval_strategy evaluation_strategy test_freq",
    "eval.at_start": "eval_on_start val_before_train",
    "eval.tasks": "eval_dataset val_files",
    "eval.patience": "early_stopping_patience",
    "eval.samples": "eval_n eval_num_generations val_kwargs_n",
    "eval.max_response_tokens": "eval_max_tokens eval_max_new_tokens",
}
_COMMAND = {  # words for options that are no settings
    "resume_from_checkpoint resume_mode": "continue a run by --resume RUN, or --resume auto",
    "n_gpus_per_node num_processes nproc_per_node": "start several processes by --devices N, or torchrun",
}
_ONE_USE = "each response is trained on once, and batch.updates_per_rollout splits a step into several updates"
_ABSENT = {
    "typical_p": "sampling knows rollout.temperature, rollout.top_p, rollout.top_k and rollout.min_p",
    "repetition_penalty presence_penalty frequency_penalty length_penalty": "responses are sampled without penalties, "
    "and objective.format_pattern says which count as malformed",
    "num_iterations ppo_epochs num_ppo_epochs": _ONE_USE,
    "delta clip_ratio_c": "the ratio is bounded by importance.clip_low and importance.clip_high alone",
    "entropy_coeff entropy_coef entropy_bonus ent_coef top_entropy_quantile": "the loss has no term for the entropy, "
    "which the metric token_entropy shows",
    "sync_ref_model ref_model_sync_steps ref_model_mixup_alpha": "the base stays what model.base names",
    "reward_weights multi_objective_aggregation": "there is one reward; add several up in your own function of "
    "objective.reward",
    "filter_groups dynamic_sampling": "groups of equal rewards stay in the batch, where they add nothing",
    "critic value_model vf_coef value_loss_coef gamma lam gae_lambda": "no critic is trained: a group's mean reward is "
    "the baseline",
    "optimizer optimizer_name": "the optimiser is AdamW, with the settings of optim",
    "push_to_hub hub_model_id hub_strategy": "a run writes to run.output alone, whose policy you can upload",
    "load_in_8bit load_in_4bit quantization": "quantised weights are not trained; to save memory set lora.rank and "
    "model.dtype = bfloat16",
    "deepspeed fsdp fsdp_config": "models are cut over the ranks that --devices N or torchrun starts, without settings",
    "logging_steps logging_strategy": "every step is logged",
}
_SETTINGS = {word: settings.split() for settings, words in _WORDS.items() for word in words.split()}
_ADVICE = {word: advice for words, advice in _COMMAND.items() for word in words.split()} | {
    word: f"there is no such setting here: {why}; leave it out"
    for words, why in _ABSENT.items()
    for word in words.split()
}


def meaning(name: str) -> list[str]:
    """Return the settings that an unknown name, dotted or not, means in other trainers; none for an unknown word.

    >>> meaning("learning-rate"), meaning("model.name"), meaning("actor.optim.colour")
    (['optim.lr'], ['model.path'], [])
    """
    return next((_SETTINGS[word] for word in _readings(name) if word in _SETTINGS), [])


def advice(name: str) -> str | None:
    """Say what to do in place of a name of other trainers that means no setting here; None for any other name."""
    return next((_ADVICE[word] for word in _readings(name) if word in _ADVICE), None)


def _readings(name: str) -> tuple[str, str]:
    """The last two words of a name as one, and its last word."""
    words = name.lower().replace("-", "_").split(".")
    return "_".join(words[-2:]), words[-1]
