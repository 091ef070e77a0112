"""Say what vLLM cannot do with a run's settings, before it is started: to the sampler, and to `fastflow plan`."""

from __future__ import annotations

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM reserves room for one of these


def no_adapters(rank: int, device: str, *, mixture: bool) -> str:
    """Say why vLLM cannot apply adapters of this rank itself; empty where it can. device: "cpu" or "cuda"."""
    if mixture and device == "cpu":
        return (
            "vLLM applies adapters of a mixture of experts on a GPU only, since it multiplies experts by Triton's "
            "kernels then; set --rollout.adapters merge"
        )
    if rank > RANKS[-1]:
        return f"lora.rank = {rank} is more than the {RANKS[-1]} that vLLM can apply; set --rollout.adapters merge"
    return ""


def no_sleep(sleep: str, device: str) -> str:
    """Say why vLLM cannot sleep as rollout.sleep asks; empty where it can."""
    if device == "cpu" and sleep not in ("auto", "off"):
        return f"rollout.sleep = {sleep} frees nothing on a CPU; leave it at auto"
    return ""


def another_gpu(device: str, index: int | None) -> str:
    """Say why a policy on this device cannot share it with vLLM; empty where it can."""
    if device == "cuda" and index:
        return (
            f"rollout.engine = vllm takes the first GPU it sees, and the policy is on cuda:{index}; set "
            f"CUDA_VISIBLE_DEVICES={index} and model.device = cuda"
        )
    return ""
