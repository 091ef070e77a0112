"""A block of rows through the head on the CPU: torch's products, and the native library's sweeps over them."""

from fastflow_kernels.cpu import native
from fastflow_kernels.cpu.row_pass import NativeRowPass
from fastflow_kernels.torch_projector import TorchProjector


class NativeProjector(TorchProjector):
    """For float32 and bfloat16, where there is a library."""

    @staticmethod
    def sweeps() -> NativeRowPass:
        library = native.library()
        assert library is not None, native.why_not()
        return library
