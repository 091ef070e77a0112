"""Words of other trainers, and the settings that they mean here."""

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
    "lora.rank": "r lora_r lora_rank",
    "lora.targets": "target_modules lora_target_modules",
    "data.path": "data dataset dataset_name train_file train_files",
    "data.prompt_field": "prompt_key prompt_column",
    "data.max_prompt_tokens": "max_prompt_length",
    "data.template_arguments": "chat_template_kwargs",
    "data.system": "system_prompt",
    "rollout.engine": "vllm use_vllm vllm_mode",
    "rollout.max_response_tokens": "max_tokens max_new_tokens max_completion_length max_response_length",
    "rollout.memory_fraction": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "rollout.stop": "stop_strings",
    "objective.name": "algorithm adv_estimator loss_type",
    "objective.reward": "reward_funcs reward_fn reward_function reward_model",
    "importance.clip_low importance.clip_high": "epsilon clip_range clip_ratio cliprange",
    "importance.clip_high": "epsilon_high clip_ratio_high",
    "batch.prompts_per_step batch.responses_per_prompt batch.tokens_per_microbatch": "batch_size train_batch_size "
    "per_device_train_batch_size micro_batch_size ppo_mini_batch_size gradient_accumulation_steps",
    "batch.responses_per_prompt": "n num_generations num_return_sequences group_size",
    "batch.tokens_per_microbatch": "max_token_len_per_gpu ppo_max_token_len_per_gpu",
    "batch.updates_per_rollout": "num_iterations ppo_epochs",
    "optim.lr": "learning_rate",
    "optim.betas": "adam_beta1 adam_beta2",
    "optim.warmup_updates": "warmup_steps warmup_ratio lr_warmup_steps",
    "optim.schedule": "lr_scheduler lr_scheduler_type",
    "optim.max_grad_norm": "grad_clip clip_grad",
    "run.steps": "epochs max_steps num_train_epochs total_epochs total_training_steps",
    "run.output": "output_dir save_dir default_local_dir",
    "run.overwrite": "overwrite_output_dir",
    "run.save_every": "save_freq save_steps save_interval",
    "run.tensorboard run.wandb": "report_to logger",
}
_SETTINGS = {word: settings.split() for settings, words in _WORDS.items() for word in words.split()}


def meaning(name: str) -> list[str]:
    """Return the settings that an unknown name, dotted or not, means in other trainers; none for an unknown word.

    >>> meaning("learning-rate"), meaning("model.name"), meaning("actor.optim.colour")
    (['optim.lr'], ['model.path'], [])
    """
    words = name.lower().replace("-", "_").split(".")
    return _SETTINGS.get("_".join(words[-2:])) or _SETTINGS.get(words[-1], [])
