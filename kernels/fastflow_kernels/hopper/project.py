"""The projection of a block by QuACK's product for sm_90; `emulation.py` states what it computes."""

from torch import Tensor

from fastflow_kernels.hopper.epilogue import exponentials as epilogue
from fastflow_kernels.hopper.tiles import Part

# Two tiles on a multiprocessor, one's epilogue under the other's product; two tiles of a column share its load.
SCHEDULE = {"tile_M": 128, "cluster_M": 2, "cluster_N": 1, "pingpong": True}


def project(
    hidden: Tensor,
    weight: Tensor,
    parts: list[Part],
    columns: Tensor,
    scale: float,
    target_logit: Tensor,
    total: Tensor,
    target_product: Tensor,
    exponentials: Tensor | None,
) -> None:
    """As emulation.project."""
    for part, own_columns in zip(parts, columns, strict=True):
        epilogue.gemm(
            hidden,
            weight[part.columns],
            None if exponentials is None else exponentials[:, part.columns],
            epi_args={
                "target_logit": target_logit,
                "total": total[:, part.tiles],
                "columns": own_columns,
                "target_product": target_product,
                "scale": scale,
            },
            tile_N=part.width,
            **SCHEDULE,
        )
