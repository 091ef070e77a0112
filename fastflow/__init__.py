"""fastflow: fine-tune language models without labels or rewards, by PowerFlow.

The policy learns to sample from the alpha-power of its own base distribution: alpha above 1 sharpens it (reasoning),
alpha below 1 flattens it (creativity). Start with `fastflow demo`, or from Python with `fine_tune`; the loop is in
`fastflow.train.trainer`, one update in `fastflow.train.learner`, the fused ops in the package `fastflow_kernels`.
"""

from typing import TYPE_CHECKING, Any

from fastflow.errors import FastflowError

if TYPE_CHECKING:
    from fastflow.train.program import fine_tune

__all__ = ["FastflowError", "__version__", "fine_tune"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `fine_tune` when it is asked for: it needs torch, and `fastflow --help` does not."""
    if name == "fine_tune":
        from fastflow.train.program import fine_tune

        return fine_tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
