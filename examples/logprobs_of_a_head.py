"""Log-probs, entropy and gradients of a language model's head, without its (tokens, vocabulary) logits.

    python examples/logprobs_of_a_head.py

Compares `fastflow_kernels.linear_logprob` with the way by materialised logits: differences, time, and the memory of the
logits that are never made. On a GPU in bfloat16 at the sizes of Qwen2.5-1.5B, on a CPU in float32 at smaller ones.
"""

import time

import torch

from fastflow_kernels import explain, linear_logprob

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
TOKENS, WIDTH, VOCABULARY = (8192, 1536, 151936) if ON_GPU else (256, 512, 32000)


def by_logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs (N,) and entropy (N,) of the distributions, as one writes them in PyTorch."""
    logprobs = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def fused(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in one call."""
    logprob, statistics = linear_logprob(hidden, weight, targets, statistics=True)
    return logprob, statistics.entropy


def measure(function, inputs: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], float]:
    """Outputs and gradients of a second call, and its seconds."""
    for _ in range(2):
        start = time.perf_counter()
        logprob, entropy = function(*inputs)
        gradients = torch.autograd.grad(-logprob.mean() - 0.01 * entropy.mean(), inputs[:2])
        if ON_GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return (logprob.detach(), entropy.detach(), *gradients), seconds


def main() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, device=DEVICE, dtype=DTYPE).requires_grad_()
    weight = (torch.randn(VOCABULARY, WIDTH, device=DEVICE, dtype=DTYPE) / WIDTH**0.5).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), device=DEVICE)
    print(f"{TOKENS} tokens, width {WIDTH}, vocabulary {VOCABULARY}, {DTYPE} on {DEVICE}")
    print(f"implementation: {explain(hidden, weight)}")
    (expected, slow), (found, fast) = (measure(function, (hidden, weight, targets)) for function in (by_logits, fused))
    for name, wanted, got in zip(("log-prob", "entropy", "d hidden", "d weight"), expected, found, strict=True):
        print(f"{name}: relative difference {float((wanted - got).norm() / wanted.norm()):.1e}")
    logits = TOKENS * VOCABULARY * torch.finfo(DTYPE).bits / 8
    print(f"by logits {slow:.3f} s, fused {fast:.3f} s; the logits alone take {logits / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
