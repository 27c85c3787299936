"""How one sparse-plus-low-rank linear computes: what is chosen once per run, by shape, and recorded with it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.backend import backend
from kernels.measured import fastest
from kernels.sparse_low_rank_linear import csr

Keep = Literal["none", "layer", "step"]

SPARSE_COST = 10
"""A sparse multiplication costs a CPU as much as ten dense ones (measured: 5 to 12)."""

CSR_SMALLEST_SIDE = 256
"""Below this the CSR path's many small calls cost more than the dense matmuls they save (measured)."""

FUSED_BELOW_RANK = 256
"""Below this rank building W is bound by writing it, so one kernel that writes it once wins (a roofline estimate)."""


@dataclass(frozen=True)
class Choice:
    """How a linear computes; every choice gives the same result up to rounding.

    path "dense": W is built and multiplied with. path "csr": the factors and a compressed sparse S are multiplied with
    one after the other, W never exists (fp32 on a CPU).
    """

    path: Literal["dense", "csr"] = "dense"
    keep: Keep = "none"
    """For path "dense": how long W is kept. none: built in the forward and again in the backward pass. layer: from the
    forward to the backward pass of its layer. step: until the parameters change."""
    accumulate: bool = False
    """For keep "step": sum the dense gradient of W over micro-steps and reduce it to the factors' gradients once, in
    the last one. Until then the parameters receive no gradient."""
    fused: bool = False
    """Build W in one Triton kernel instead of a matmul and a scatter."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    shape: tuple[int, int],
    rank: int,
    nnz: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    keep: Keep = "none",
    accumulate: bool = False,
) -> Choice:
    """The fastest choice for a linear of `shape` (out, in) on micro-batches of `tokens` tokens.

    `keep` and `accumulate` hold if W is built.
    """
    n_out, n_in = shape
    if device.type == "cpu" and dtype == torch.float32 and backend() != "triton" and csr.available():
        factored = rank * (n_out + n_in) + SPARSE_COST * nnz < n_out * n_in and min(shape) >= CSR_SMALLEST_SIDE
        sizes = (n_out, n_in, rank, nnz, tokens)
        if fastest("sparse_low_rank_linear", device, dtype, sizes, "csr" if factored else "dense") == "csr":
            return Choice(path="csr")
    if device.type != "cuda":
        return Choice(keep=keep, accumulate=accumulate)
    rule = "fused" if rank < FUSED_BELOW_RANK else "matmul"
    build = fastest("decompress", device, dtype, (n_out, n_in, rank, nnz), rule)
    return Choice(keep=keep, accumulate=accumulate, fused=build == "fused")


class StepCache:
    """What one linear keeps over an optimizer step: W, and the dense gradient summed so far."""

    def __init__(self) -> None:
        self.last_micro_step = True
        """Whether the next backward pass ends the step, and hands out the gradients of the parameters."""
        self.dense_grad: Tensor | None = None
        self._weight: Any = None
        self._form: Any = None
        self._parameters: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()

    def weight(self, parameters: tuple[Tensor, ...], form: Any) -> Any:
        """The kept W, if it was built in this form from these very parameters, and they have not changed; else None."""
        kept = self._weight
        if kept is None or self._form != form or self._versions != _versions(parameters):
            return None
        same = all(one is other for one, other in zip(self._parameters, parameters, strict=True))
        return kept if same else None

    def keep(self, weight: Any, parameters: tuple[Tensor, ...], form: Any) -> None:
        """Keep W, in whatever form it is multiplied with."""
        self._weight, self._form = weight, form
        self._parameters, self._versions = parameters, _versions(parameters)

    def clear(self) -> None:
        """Forget all: the parameters have changed (behind the back of PyTorch's version counters, too)."""
        self._weight = self.dense_grad = None
        self._parameters = ()


def _versions(parameters: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(parameter._version for parameter in parameters)
