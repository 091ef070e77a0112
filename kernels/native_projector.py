"""A block of rows through the head on the CPU: torch's products, and the native library's sweeps over them."""

from fastflow_kernels import native
from fastflow_kernels.head import Head
from fastflow_kernels.torch_projector import TorchProjector


class NativeProjector(TorchProjector):
    """For float32 and bfloat16, where `native.library()` is not None."""

    def __init__(self, head: Head, most_rows: int):
        super().__init__(head, most_rows)
        row_pass = native.library()
        self.row_maximum, self.row_exponentials_ = row_pass.row_maximum, row_pass.row_exponentials_
