"""The projection of a block by QuACK's product for sm_90; `emulation.py` states what it computes."""

from typing import Any, NamedTuple

from torch import Tensor

from fastflow_kernels.hopper.epilogue import exponentials as epilogue
from fastflow_kernels.hopper.tiles import Part


class Schedule(NamedTuple):
    """One shape of the product's tiles, and how programs go over them."""

    columns: int
    cluster: tuple[int, int]  # tiles that share their factors' loads, in rows and in columns
    pingpong: bool = False  # two tiles on a multiprocessor, one's epilogue under the other's product
    rows: int = 128

    def options(self) -> dict[str, Any]:
        return {
            "tile_M": self.rows,
            "tile_N": self.columns,
            "cluster_M": self.cluster[0],
            "cluster_N": self.cluster[1],
            "pingpong": self.pingpong,
        }


SCHEDULES = {
    64: Schedule(64, (2, 1), pingpong=True),
    128: Schedule(128, (2, 1), pingpong=True),
    192: Schedule(192, (2, 1), pingpong=True),
}


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
            **SCHEDULES[part.width].options(),
        )
