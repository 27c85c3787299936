"""From which layer of the small model each layer of the grown one comes.

An order maps (layers of the small model, layers of the grown one) to one source per grown layer; UserError, naming
growth.factor, when it has none for these numbers.
"""

from collections.abc import Callable

from model.errors import UserError
from model.growth.plan import require_no_fewer

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
