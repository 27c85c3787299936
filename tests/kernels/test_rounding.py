import pytest
import torch

from kernels.rounding import WORD, random_bits, random_fractions, round_to

KEYS = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x9E3779B9]
CPU = torch.device("cpu")


def scrambled(x):
    """MurmurHash3's finaliser, in Python's integers."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & WORD
    return x ^ (x >> 16)


def expected(key, offset):
    return scrambled(scrambled(offset ^ key) + key * 0x9E3779B9 & WORD)


@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (64, 65), (0, 4)], ids=str)
def test_bits_are_those_of_whole_numbers(shape):
    """Through vectors and their remainders alike; products that pass 32 bits wrap."""
    size = shape[0] * shape[1]
    for key in KEYS:
        found = random_bits(key, shape, CPU)
        assert found.dtype == torch.int32
        assert [bits & WORD for bits in found.flatten().tolist()] == [expected(key, i) for i in range(size)]


def test_a_key_for_each_row():
    keys = torch.tensor(KEYS)
    signed = torch.where(keys > 0x7FFFFFFF, keys - 2**32, keys).int()
    found = random_bits(signed[:, None], (len(KEYS), 19), CPU)
    want = [[expected(key, 19 * i + j) for j in range(19)] for i, key in enumerate(KEYS)]
    assert (found.long() & WORD).tolist() == want


def test_fractions_lie_between_0_and_1():
    bits = torch.tensor([0, -1, 0x7FFFFFFF, -0x80000000, 1 << 17], dtype=torch.int32)
    before = bits.clone()
    assert random_fractions(bits).tolist() == [2**-16, 1 - 2**-16, 0.5 - 2**-16, 0.5 + 2**-16, 3 * 2**-16]
    assert torch.equal(bits, before)


def test_bf16_is_rounded_by_the_lowest_bits():
    x = torch.full((100, 100), 1 + 3 * 2**-9)  # three quarters of the way from 1 to the next bf16
    rounded = round_to(x, torch.bfloat16, 7).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    assert rounded.mean().item() == pytest.approx(x[0, 0].item(), abs=2e-4)
    low = torch.tensor([[expected(7, 100 * i + j) & 0xFFFF for j in range(100)] for i in range(100)])
    part = int(x[:1].view(torch.int32)[0, 0]) & 0xFFFF
    assert torch.equal(rounded > 1, low + part > 0xFFFF)
