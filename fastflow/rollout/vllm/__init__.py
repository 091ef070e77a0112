"""Rollouts by vLLM in a child process that the trainer owns; the trainer itself never imports vllm."""
