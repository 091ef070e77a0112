"""What the projection does beside multiplying, as QuACK compiles it into its product."""

from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.math import pexp2
from quack.epilogue.ops import ColVecLoad, ColVecReduce, ColVecSelect

_columns = ColVecLoad("columns")


@gemm_epilogue(
    ops={"target_logit": ColVecLoad("target_logit")},
    reduces={"total": ColVecReduce("total")},
    outs={"target_product": ColVecSelect("target_product", idx_op=_columns)},
    extra_ops=(_columns,),
)
def exponentials(acc, target_logit, scale):
    """2^(acc scale - target_logit), stored and summed by row and tile; and the product of each row's target."""
    power = pexp2(acc * scale - target_logit)
    return {"D": power, "total": power, "target_product": acc}
