"""Random bits and stochastic rounding in PyTorch, equal bit for bit to the Triton ones of kernels/triton_helpers.py.

The bits of an element depend on a 32-bit key and its flat row-major position in the matrix alone, so results do not
depend on how a kernel divides the matrix. Take another key for each matrix and step.
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def check_key(key: int | None, dtype: torch.dtype | None = None) -> None:
    """ValueError unless `key` is None, or fits 32 bits unsigned and `dtype`, a weight W's, is not fp32."""
    if key is not None and not 0 <= key <= WORD:
        raise ValueError(f"key is {key}; it must be from 0 to 2^32 - 1")
    if key is not None and dtype == torch.float32:
        raise ValueError("W is fp32, which is not rounded stochastically; leave out the key")


def signed_key(key: int | None) -> int:
    """`key` as the int32 of the same bits: kernels are compiled for one type of it. None gives 0."""
    return 0 if key is None else key - (key >> 31 << 32)


def random_bits(key: int | Tensor, shape: tuple[int, int], device: torch.device) -> Tensor:
    """32 random bits for each element of a matrix of `shape`, as int32; `key` is one, or an int32 (rows, 1) of them.

    In int32, whose products wrap as a kernel's uint32 do, and in place: a CPU takes twenty times as long in int64.
    """
    if isinstance(key, int):
        key = torch.full((1, 1), signed_key(key), dtype=torch.int32, device=device)
    x = torch.arange(shape[0] * shape[1], dtype=torch.int32, device=device).view(shape) ^ key
    return _scramble(_scramble(x).add_(key * signed_key(0x9E3779B9)))


def _scramble(x: Tensor) -> Tensor:
    """MurmurHash3's finaliser of int32 `x`, in place."""
    x = _fold(x, 16).mul_(signed_key(0x85EBCA6B))
    x = _fold(x, 13).mul_(signed_key(0xC2B2AE35))
    return _fold(x, 16)


def _fold(x: Tensor, shift: int) -> Tensor:
    """x ^ x >> shift in place, with zeros where the shift would repeat the sign."""
    return x.bitwise_xor_((x >> shift).bitwise_and_(WORD >> shift))


def random_fractions(bits: Tensor) -> Tensor:
    """fp32 in (0, 1) of 32 random bits: odd multiples of 2^-16."""
    return (bits >> 17).bitwise_and_(0x7FFF).mul_(2).add_(1).float().mul_(2**-16)


def round_to(x: Tensor, dtype: torch.dtype, key: int | None = None) -> Tensor:
    """`x` (rows, cols) as `dtype`: to nearest even, or with `key` stochastically, which is for bf16 alone."""
    if key is None:
        return x.to(dtype)
    pattern = x.float().contiguous().view(torch.int32)
    low = random_bits(key, (x.shape[0], x.shape[1]), x.device).bitwise_and_(0xFFFF)
    # Infinity and NaN have no neighbours: their patterns must not be added to.
    rounded = torch.where(x.isfinite(), pattern + low & -0x10000, pattern | x.isnan().int() << 22)
    return rounded.view(torch.float32).to(dtype)
