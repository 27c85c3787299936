"""Growth of a trained model into a larger one (G_stack, arXiv 2405.15319). An operator is one line here.

Depth: an operator makes a plan, `grow_tensors` applies it to a state tensor by tensor. Width (`Widening`), and rank and
density of the linears (`grow_linears`), go on the same stream. `grow_after` says when.
"""

from model.errors import UserError
from model.growth.operators import ORDERS, Operator, in_order, source_layers, zero
from model.growth.plan import GrowthOptions, GrowthPlan

GROWTH: dict[str, Operator] = {
    **{order: in_order(order) for order in ORDERS},
    "source_layers": source_layers,
    "zero": zero,
}


def plan_growth(operator: str, small: int, large: int, options: GrowthOptions | None = None) -> GrowthPlan:
    """Plan how `operator` grows a model of `small` layers to `large`; UserError when it cannot."""
    if operator not in GROWTH:
        raise UserError(f"growth.operator {operator!r} is none of {', '.join(GROWTH)}")
    return GROWTH[operator](small, large, options or GrowthOptions())
