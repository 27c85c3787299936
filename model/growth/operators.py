"""Growth operators: from the two depths and the options to a plan.

An order maps (layers of the small model, layers of the grown one) to one source per grown layer; UserError, naming
growth.factor, when it has none for these numbers. An operator makes a plan of an order.

Only the first copy of a layer needs its output for the function to stay: the others are silenced where it shall stay.
A silent layer adds exact zeros to the residual stream, so the network computes what the small one did. It is not dead:
of o_proj and down_proj only B (and the sparse values, or the dense weight) is zero while A keeps its values, so what is
zero receives gradient in the first step and everything before it in the second. With A zero as well both factors would
wait for each other forever.
"""

from collections.abc import Callable

from model.errors import UserError
from model.growth.plan import GrowthOptions, GrowthPlan, require_no_fewer

Sources = tuple[int, ...]


def stack(small: int, large: int) -> Sources:
    """abcabc: the whole stack again and again, layer i from i mod small (G_stack, arXiv 2405.15319, algorithm 1)."""
    _factor("stack", small, large)
    return tuple(i % small for i in range(large))


def interleave(small: int, large: int) -> Sources:
    """aabbcc: every layer repeated where it stands, layer i from i // factor."""
    factor = _factor("interleave", small, large)
    return tuple(i // factor for i in range(large))


def solar(small: int, large: int) -> Sources:
    """The stack without its last n layers, then without its first; large = 2 (small - n) (SOLAR, arXiv 2312.15166)."""
    _require("solar", small, large, large % 2 == 0 and large <= 2 * small, f"an even number of at most {2 * small}")
    half = large // 2
    return (*range(half), *range(small - half, small))


def gradual(small: int, large: int) -> Sources:
    """The stack, then its last large - small layers again: one stage of gradual stacking (arXiv 2405.15319)."""
    _require("gradual", small, large, large <= 2 * small, f"at most {2 * small}")
    return (*range(small), *range(2 * small - large, small))


def midas(small: int, large: int) -> Sources:
    """In k groups of large - small layers, group ceil(k / 2) twice: one stage of MIDAS (arXiv 2409.19044)."""
    require_no_fewer(small, large)
    width = large - small
    if width == 0:
        return tuple(range(small))
    _require("midas", small, large, small % width == 0, f"more than {small} by a divisor of it")
    end = (small // width + 1) // 2 * width
    return (*range(end), *range(end - width, small))


ORDERS: dict[str, Callable[[int, int], Sources]] = {
    order.__name__: order for order in (stack, interleave, solar, gradual, midas)
}


def _factor(order: str, small: int, large: int) -> int:
    _require(order, small, large, large % small == 0, f"a multiple of {small}")
    return large // small


def _require(order: str, small: int, large: int, fits: bool, wanted: str) -> None:
    require_no_fewer(small, large)
    if not fits:
        raise UserError(f"growth.factor: order {order!r} cannot grow {small} layers to {large}; it needs {wanted}")


Operator = Callable[[int, int, GrowthOptions], GrowthPlan]


def in_order(order: str) -> Operator:
    """Make the operator that copies layers in an order of ORDERS: for `stack` G_stack (arXiv 2405.15319).

    With function_preserving, B and the sparse values (or the dense weight) of o_proj and down_proj are zero in every
    copy of a layer but its first: for `stack`, in layers small and above.
    """

    def operator(small: int, large: int, options: GrowthOptions) -> GrowthPlan:
        _refuse_unused(order, options, "order", "source_layers")
        return _plan(small, ORDERS[order](small, large), options.function_preserving, "growth.operator")

    return operator


def source_layers(small: int, large: int, options: GrowthOptions) -> GrowthPlan:
    """Copy layers from an explicit list, in any order and any number; function_preserving as in `in_order`."""
    _refuse_unused("source_layers", options, "order")
    sources, key = options.source_layers, "growth.source_layers"
    require_no_fewer(small, large)
    if len(sources) != large:
        raise UserError(f"{key} names {len(sources)} layers; give one for each of the grown model's {large}")
    for place, source in enumerate(sources):
        if not 0 <= source < small:
            raise UserError(
                f"{key}[{place}] is {source}; the small model has layers 0 to {small - 1}, so give one of these"
            )
    return _plan(small, sources, options.function_preserving, key)


def zero(small: int, large: int, options: GrowthOptions) -> GrowthPlan:
    """Add layers whose o_proj and down_proj are the zero map, all else copied (LEMON's depth growth, arXiv 2310.07999).

    Always function preserving. In the order interleave, as in LEMON, unless the options name another.
    """
    _refuse_unused("zero", options, "source_layers")
    order = options.order or "interleave"
    if order not in ORDERS:
        raise UserError(f"growth.order {order!r} is none of {', '.join(ORDERS)}")
    return _plan(small, ORDERS[order](small, large), True, "growth.order")


def _plan(small: int, sources: Sources, function_preserving: bool, key: str) -> GrowthPlan:
    if not function_preserving:
        return GrowthPlan(small, sources)
    firsts = [sources.index(source) for source in dict.fromkeys(sources)]
    if [sources[place] for place in firsts] != list(range(small)):
        raise UserError(
            f"growth.function_preserving needs every layer of the small model, first copies in their order; {key} "
            f"gives {', '.join(str(sources[place]) for place in firsts)} of 0 to {small - 1}; set it to false"
        )
    return GrowthPlan(small, sources, frozenset(range(len(sources))) - set(firsts))


def _refuse_unused(operator: str, options: GrowthOptions, *keys: str) -> None:
    for key in keys:
        if getattr(options, key):
            raise UserError(f"growth.{key} has no meaning with growth.operator = {operator!r}; remove one of them")
