"""The files of tensors: the safetensors library reads them, and would have written the very same bytes."""

import pytest
import safetensors.torch
import torch

from model.errors import RunFailed
from pretrain.checkpoint.save import told
from pretrain.checkpoint.tensor_file import TYPES, write_tensors
from pretrain.machine.memory import readable

LIBRARYS = [torch.int64, torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.bool]
"""Types whose names and order every version of the library has."""


def test_bytes_are_those_of_the_library(tmp_path):
    torch.manual_seed(0)
    tensors = {f"{n}": (100 * torch.randn(n, 3)).to(kind) for n, kind in enumerate([*LIBRARYS, *LIBRARYS], start=1)}
    tensors |= {"a count": torch.tensor(7), "ünicode": torch.ones(5, 2), "nothing": torch.empty(0, 4)}
    entry = write_tensors(tmp_path / "file", tensors)
    written = (tmp_path / "file").read_bytes()
    assert written == safetensors.torch.save(tensors)
    assert entry.bytes == len(written)


def test_every_type_comes_back(tmp_path):
    tensors = {str(kind): torch.tensor([0, 1, 1]).to(kind) for kind in reversed(TYPES)}
    write_tensors(tmp_path / "file", tensors)
    read = safetensors.torch.load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].view(torch.uint8), tensor.view(torch.uint8))


def test_an_error_that_is_not_the_disks_is_a_sentence():
    full = OSError(28, "No space left on device")
    assert told(3, None) is None
    assert told(3, full) is full
    failure = told(3, ValueError("a\nb"))
    assert isinstance(failure, RunFailed)
    assert str(failure) == "the checkpoint of step 3 could not be written (ValueError: a)"


@pytest.mark.parametrize(
    ("size", "text", "binary"),
    [
        (0, "0 MB", "0 MiB"),
        (300_000, "0.3 MB", "0.3 MiB"),
        (999_000_000, "999 MB", "952.7 MiB"),
        (7 * 10**9, "7 GB", "6.5 GiB"),
        (2**30, "1.1 GB", "1 GiB"),
    ],
)
def test_sizes_below_a_gigabyte_are_told_in_megabytes(size, text, binary):
    assert readable(size) == text
    assert readable(size, binary=True) == binary
