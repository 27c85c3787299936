"""What the dense weights of the seven projections of a block become, in the kind of linear that was asked for."""

from collections.abc import Callable, Iterator

from torch import Tensor

from model.hf.names import DenseTensor
from model.linear import LinearConfig, build_linear
from model.linear.from_dense import Approximation, Support, approximate


class Conversion:
    """A callable for `checkpoint_tensors`: the parameters and supports of each projection, and how good they are."""

    def __init__(
        self,
        linear: LinearConfig,
        support: Support,
        seed: int,
        init_std: float,
        tell: Callable[[str, Approximation], None] = lambda name, found: None,
    ):
        """`tell` is called with each matrix that is done: all of them take minutes in a large model."""
        self.linear, self.support, self.seed, self.init_std, self.tell = linear, support, seed, init_std, tell
        self.made: dict[str, Approximation] = {}
        """By name of the linear."""

    def __call__(self, tensor: DenseTensor, weight: Tensor) -> Iterator[tuple[str, Tensor]] | None:
        name = tensor.ours.removesuffix(".weight")
        if self.linear.name == "dense" or not name.endswith("_proj"):
            return None
        return self._parts(name, weight)

    def _parts(self, name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        n_out, n_in = weight.shape
        linear = build_linear(self.linear, n_in, n_out, name, self.init_std)
        self.made[name] = approximate(linear, weight, self.seed, self.support)
        self.tell(name, self.made[name])
        for part, value in linear.state_dict().items():
            yield f"{name}.{part}", value
