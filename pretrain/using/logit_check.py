"""Whether two computations of one model differ by rounding alone.

A worst difference that is right for every model does not exist: what fp32 rounding costs grows with the depth and with
the size of the weights, by orders of magnitude. So it is measured, against the same weights evaluated in fp64, and a
difference is judged in multiples of it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.rope import rotary_tables
from pretrain.using.parts import Parts

MULTIPLE = 16.0
"""Times the rounding of our own fp32 evaluation that another may be off: orders of summation differ."""

FLOOR = 1e-6
"""Fraction of the logits' size that is always allowed: a shallow model may round by almost nothing here."""

CEILING = 1e-2
"""Fraction of the logits' spread that is never allowed in rms: one norm left out costs several times that."""


@dataclass(frozen=True)
class Difference:
    """How far logits are from the exact ones, and where most."""

    rms: float
    """Root mean square, as a fraction of the exact logits' spread (standard deviation)."""
    worst: float
    """Largest, in the same unit."""
    where: str
    """Row, position and token id of the largest, with both logits."""


@dataclass(frozen=True)
class Exact:
    """Logits of some weights without rounding, and what fp32 rounding makes of them."""

    logits: Tensor  # [B, T, V] fp64
    rounding: Difference
    """Error of our own fp32 evaluation of the same weights."""

    def difference(self, found: Tensor) -> Difference:
        return _difference(found, self.logits)

    def allows(self, difference: Difference) -> bool:
        """Whether rounding explains `difference`; never when it is not a number."""
        floor = FLOOR * self.logits.abs().max().item() / _spread(self.logits)
        rms = max(MULTIPLE * self.rounding.rms, floor)
        worst = max(MULTIPLE * self.rounding.worst, 10 * floor)
        return difference.rms <= min(rms, max(CEILING, floor)) and difference.worst <= worst


def _difference(found: Tensor, exact: Tensor) -> Difference:
    error, spread = (found.double() - exact).abs(), _spread(exact)
    index = int(error.nan_to_num(nan=torch.inf).argmax())
    row, position, token = (int(i) for i in torch.unravel_index(torch.tensor(index), error.shape))
    where = (
        f"row {row}, position {position}, token id {token}: "
        f"{found[row, position, token].item():.6g} instead of {exact[row, position, token].item():.6g}"
    )
    return Difference(error.square().mean().sqrt().item() / spread, error.flatten()[index].item() / spread, where)


def _spread(logits: Tensor) -> float:
    return max(logits.std().item(), torch.finfo(torch.float32).tiny)


@torch.no_grad()
def evaluate_exactly(parts: Parts, tokens: Tensor) -> Exact:
    """The logits of a dense model, of which one part at a time is in memory, in fp32 and then widened to fp64."""
    config = parts.config
    embedded = parts("tok_embeddings")(tokens)
    hidden = {dtype: embedded.to(dtype) for dtype in (torch.float32, torch.float64)}
    rope = {dtype: rotary_tables(config, tokens.shape[1], tokens.device, dtype) for dtype in hidden}
    for index in range(config.n_layers):
        block = parts(f"layers.{index}")
        for dtype in hidden:
            hidden[dtype] = block.to(dtype)(hidden[dtype], rope[dtype])
        del block  # or the next one would be made beside it
    norm, head = parts("norm"), parts.weight("tok_embeddings.weight" if config.tie_embeddings else "lm_head.weight")
    logits = {dtype: F.linear(norm.to(dtype)(hidden[dtype]), head.to(dtype)) for dtype in hidden}
    return Exact(logits[torch.float64], _difference(logits[torch.float32], logits[torch.float64]))
