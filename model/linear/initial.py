"""How a fresh linear's values are drawn: the key `linear.init`.

FACTORS has what may become of the two factors of a product; other values have one law, uniform or normal, or the
generalised Gaussian in its place. All comes from (seed, names), on the CPU. Where several processes train, all start
from the parameters of one of them, so that it does not matter how the decompositions here round on each.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, lgamma

import torch
from pydantic import AfterValidator
from torch import Tensor

from model.linear.truncated_svd import balanced_factors
from model.seeding import fill_normal, fill_uniform, generator

SHAPES = (0.25, 10.0)
"""The least and the greatest shape of a generalised Gaussian. At the first, the fourth moment is 458 times the squared
second, and even a matrix of a million numbers has a standard deviation that is 1 % off; the other is nearly uniform."""


def among(*names: str) -> AfterValidator:
    """Make the check of a key that is one of `names` or ggd:NU, a generalised Gaussian of shape NU."""

    def check(value: str) -> str:
        if value not in names and shape_of(value) is None:
            given, (least, most) = ", ".join(map(repr, names)), SHAPES
            raise ValueError(f"expected {given} or 'ggd:NU' with NU from {least:g} to {most:g}, got {value!r:.100}")
        return value

    return AfterValidator(check)


def shape_of(init: str) -> float | None:
    """Return NU of "ggd:NU"; None for another text, or a NU that is none."""
    match = re.fullmatch(r"ggd:(\d{1,2}(?:\.\d{1,6})?)", init)
    return float(match[1]) if match and SHAPES[0] <= float(match[1]) <= SHAPES[1] else None


def draw_uniform(init: str, tensor: Tensor, bound: float, seed: int, name: str) -> None:
    """Fill `tensor` uniform in +-bound, or with generalised Gaussian numbers of that standard deviation."""
    nu = shape_of(init)
    if nu is None:
        fill_uniform(tensor, bound, seed, name)
    else:
        fill_generalised(tensor, bound / 3**0.5, nu, seed, name)


def draw_normal(init: str, tensor: Tensor, std: float, seed: int, name: str) -> None:
    """Fill `tensor` with normal numbers, or with generalised Gaussian ones of that standard deviation."""
    nu = shape_of(init)
    if nu is None:
        fill_normal(tensor, std, seed, name)
    else:
        fill_generalised(tensor, std, nu, seed, name)


@torch.no_grad()
def fill_generalised(tensor: Tensor, std: float, nu: float, seed: int, name: str) -> None:
    """Generalised Gaussian numbers of shape `nu` from (seed, name): 2 is the normal law, 1 Laplace's.

    Their density is proportional to exp(-(|x| / a)^nu), with a = std sqrt(Gamma(1/nu) / Gamma(3/nu)). So (|x| / a)^nu
    is Gamma(1/nu, 1), from which they are drawn.
    """
    random = generator(seed, "init", name)
    scale = std * exp((lgamma(1 / nu) - lgamma(3 / nu)) / 2)
    power = torch._standard_gamma(torch.full(tensor.shape, 1 / nu, dtype=torch.float64), generator=random)
    signs = torch.randint(2, tensor.shape, generator=random).mul_(2).sub_(1)
    tensor.copy_(power.pow_(1 / nu).mul_(scale).mul_(signs))


@dataclass(frozen=True)
class Factors:
    """The factors of a product scale B A in a linear that is to start."""

    A: Tensor
    """(rank, in)."""
    B: Tensor
    """(out, rank)."""
    scale: float
    init_std: float
    """Standard deviation with which a dense matrix would start."""
    name: str
    """Full name of the linear."""
    beside: bool
    """Whether something else carries the map, so that the product may start at zero."""

    @property
    def bound(self) -> float:
        """1/sqrt(in), LoRA's bound of A: Kaiming's uniform law with a = sqrt(5)."""
        return float(self.A.shape[1] ** -0.5)

    @property
    def std_of_B(self) -> float:
        """Standard deviation of B that gives the entries of scale B A, with such an A, the one of a dense matrix."""
        return float(self.init_std / (self.scale * self.bound * (len(self.A) / 3) ** 0.5))


def kaiming(factors: Factors, init: str, seed: int) -> None:
    """A uniform in +-1/sqrt(in); B zero beside something else, or normal so that the product's entries have init_std.

    With `init` a generalised Gaussian, both laws are that one, with the standard deviations as they are. B cannot start
    at zero by itself: with every projection the zero map, attention and feed-forward put out zeros, and no factor would
    ever receive a gradient.
    """
    draw_uniform(init, factors.A, factors.bound, seed, f"{factors.name}.A")
    if factors.beside:
        factors.B.zero_()
    else:
        draw_normal(init, factors.B, factors.std_of_B, seed, f"{factors.name}.B")


def spectral(factors: Factors, init: str, seed: int) -> None:
    """The factors of even share of what, of this rank, is nearest to the matrix of a fresh dense linear of the name."""
    dense = torch.empty(len(factors.B), factors.A.shape[1])
    fill_normal(dense, factors.init_std, seed, f"{factors.name}.weight")
    random = generator(seed, "init", f"{factors.name}.weight.svd")
    A, B = balanced_factors(dense, len(factors.A), factors.scale, random)
    factors.A.copy_(A)
    factors.B.copy_(B)


def orthogonal(factors: Factors, init: str, seed: int) -> None:
    """Neither factor zero but B A = 0, so that both receive gradient at once: as in PEFT's LoRA of that name.

    A is made of every second row of a random orthogonal matrix (rank, rank), B of the others. Their entries have the
    standard deviations that A and B have under `kaiming` without anything beside them. Of rank 1 nothing is left for B.
    """
    rank = len(factors.A)
    square = torch.empty(rank, rank, dtype=torch.float64)
    fill_normal(square, 1.0, seed, f"{factors.name}.orthogonal")
    Q = torch.linalg.qr(square).Q

    def mixed(rows: Tensor, count: int, std: float, name: str) -> Tensor:
        """`count` random sums of `rows` of Q, of a part len(rows) / rank of the square of every entry on average."""
        weights = torch.empty(count, len(rows), dtype=torch.float64)
        fill_normal(weights, std * (rank / max(1, len(rows))) ** 0.5, seed, f"{factors.name}.{name}")
        return weights @ rows

    factors.A.copy_(mixed(Q[0::2], factors.A.shape[1], factors.bound / 3**0.5, "A").t())
    factors.B.copy_(mixed(Q[1::2], len(factors.B), factors.std_of_B, "B"))


FACTORS: dict[str, Callable[[Factors, str, int], None]] = {
    "kaiming": kaiming,
    "spectral": spectral,
    "orthogonal": orthogonal,
}
"""What `init` makes of factors; generalised Gaussians are those of kaiming."""


@torch.no_grad()
def draw_factors(init: str, factors: Factors, seed: int) -> None:
    """Fill the factors as `init` says."""
    FACTORS.get(init, kaiming)(factors, init, seed)
