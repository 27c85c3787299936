"""One weight matrix as projectors and rules see it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Matrix:
    """A target of a matrix optimizer.

    Everything low-rank is kept in left form: of the matrix itself when its rows are projected, of its transpose when
    its columns are. There the gradient G is (m, n), the basis P (m, rank) with orthonormal columns (where the projector
    gives such), the projected gradient R = P^T G (rank, n), and moments are shaped like R.
    """

    name: str
    shape: tuple[int, int]
    """Rows and columns of the weight."""
    side: Side
    rank: int

    @property
    def m(self) -> int:
        """The projected dimension."""
        return self.shape[0] if self.side == "left" else self.shape[1]

    @property
    def n(self) -> int:
        return self.shape[1] if self.side == "left" else self.shape[0]

    def left_form(self, tensor: Tensor) -> Tensor:
        """A view of a tensor shaped like the weight as (m, n); of one in left form, as the weight."""
        return tensor if self.side == "left" else tensor.t()


def projected_side(shape: tuple[int, int], proj_type: str, square: Side) -> Side:
    """Which side `proj_type` projects: std the smaller one, `square` that of a square matrix; reverse_std the other."""
    if proj_type in ("left", "right"):
        return proj_type  # type: ignore[return-value]
    columns = shape[0] > shape[1] or (shape[0] == shape[1] and square == "right")
    return "right" if columns == (proj_type == "std") else "left"
