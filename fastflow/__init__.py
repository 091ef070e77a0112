"""fastflow: fine-tune language models without labels or rewards, by PowerFlow.

The policy learns to sample from the alpha-power of its own base distribution: alpha above 1 sharpens it (reasoning),
alpha below 1 flattens it (creativity). Start with `fastflow demo`; the loop is in `fastflow.train.trainer`, one update
in `fastflow.train.learner`, the fused ops in the package `fastflow_kernels`.
"""

from fastflow.errors import FastflowError

__all__ = ["FastflowError", "__version__"]
__version__ = "0.1.0"
