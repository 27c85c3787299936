"""A gradient without its part along the weight (Grokking at the Edge of Numerical Stability, arXiv 2501.04697)."""

import torch
from torch import Tensor

TINY = 1e-30


def orthogonal(weight: Tensor, gradient: Tensor) -> Tensor:
    """g - (w.g / w.w) w at the norm of g, in fp32, for a weight and a gradient of one shape, as released.

    That part of a step changes the weight's size alone, and with softmax and cross-entropy a model can lower its loss
    by growing logits without learning. The norm stays, so that clipping before it is clipping after it.
    """
    w, g = weight.float(), gradient.float()
    along = torch.sum(w * g) / (torch.sum(w * w) + TINY)
    rest = torch.addcmul(g, w, along, value=-1)
    return rest.mul_(g.norm() / (rest.norm() + TINY))
