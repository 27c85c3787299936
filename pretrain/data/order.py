"""The order of samples as arithmetic: any position of any epoch is computed alone, in constant memory."""

import numpy as np

from model.seeding import derive_seed

ROUNDS = 6


def permute(index: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Where each index of [0, n) goes under the permutation of [0, n) that `seed` keys. int64, the shape of `index`.

    A balanced Feistel network permutes the next power of four; an index that it sends beyond n is sent again until it
    falls inside (cycle walking: Black and Rogaway, CT-RSA 2002), four times on average at most.
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(derive_seed(seed, "feistel", r)) for r in range(ROUNDS)]
    out = _feistel(np.asarray(index).astype(np.uint64), np.uint64(half_bits), keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], np.uint64(half_bits), keys)
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half_bits: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = x >> half_bits, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
