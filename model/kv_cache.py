"""Keys and values of the tokens so far, so that a model that continues a text computes one token at a time.

Attention lets no token see a later one, so keys and values of a token never change once they are computed. A forward
pass with a cache takes the tokens that the cache does not hold yet, first those of the whole prompt and then one after
the other, and each attends to all that it holds. Rotary positions are counted from the first token held.

Shapes: B batch, T tokens, H query heads, K key and value heads, E head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Room for the keys and values of `capacity` tokens in every block of a model of shape `config`.

    Takes 2 n_layers B K capacity E elements of `dtype`, the compute dtype of the model, all at once.
    """

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (2, config.n_layers, batch, config.kv_heads, capacity, config.head_width)
        keys, values = torch.empty(shape, dtype=dtype, device=device)
        self.blocks = [BlockCache(*pair) for pair in zip(keys, values, strict=True)]
        """One per block of the model, in its order."""

    @property
    def position(self) -> int:
        """Tokens held, which is the position of the next one."""
        return self.blocks[0].position

    def clear(self) -> None:
        """Forget all tokens; the memory stays."""
        for block in self.blocks:
            block.position = 0


class BlockCache:
    """One block's `keys` and `values` [B, K, capacity, E], of which the first `position` tokens are there."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values
        self.position = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Hold k and v [B, K, T, E] of the next T tokens too; attention [B, H, T, E] of their q [B, H, T, E] to all.

        ValueError unless the cache is empty or T is 1.
        """
        start, end = self.position, self.position + k.shape[2]
        if start and end > start + 1:
            raise ValueError(f"{end - start} tokens at once after {start} others; only an empty cache takes several")
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v
        self.position = end
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        # A single query sees every key; is_causal would align it with the first one.
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, keys, values, is_causal=start == 0, enable_gqa=grouped)
