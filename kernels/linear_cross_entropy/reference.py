"""The definition of the fused output head and loss, differentiable by autograd."""

import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Sum over tokens of -log softmax(hidden weight^T)[target], with the softmax in fp32 or wider; 0-d.

    hidden (..., dim), weight (vocab, dim), targets (...) int64; tokens whose target is `ignore_index` count nothing.
    """
    logits = hidden.reshape(-1, hidden.shape[-1]) @ weight.to(hidden.dtype).t()
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    return F.cross_entropy(logits, targets.reshape(-1), ignore_index=ignore_index, reduction="sum")
