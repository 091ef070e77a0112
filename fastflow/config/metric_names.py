"""The names of a step's metrics that are numbers: what run.best_metric may name, beside an evaluation's."""

from __future__ import annotations

METRICS = (
    "loss", "residual_mean", "residual_std", "log_z",
    "length_mean", "length_p10", "length_p50", "length_p90", "length_max", "truncated_share",
    "reward_mean", "malformed_share",
    "token_entropy", "sequence_entropy", "logprob_mean", "sequence_logprob_mean", "base_logprob_mean",
    "ratio_p01", "ratio_p50", "ratio_p99", "clipped_share", "effective_sample_size", "slope", "alpha",
    "grad_norm", "lr", "repetition",
    "seconds_sample", "seconds_score", "seconds_train", "seconds",
    "sample_tokens_per_second", "score_tokens_per_second", "train_tokens_per_second",
    "peak_memory_bytes", "microbatches", "tokens", "responses", "skipped_updates", "skipped_updates_total",
    "weight_lag", "mismatch_mean", "mismatch_p99", "mismatch_max", "mismatch_kl",
)  # fmt: skip
