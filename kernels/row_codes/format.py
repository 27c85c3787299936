"""A matrix as 8-bit codes, each row with one scale."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.arguments import check_matrix
from kernels.quant.format import code_width as bytes_of_row

Format = Literal["int8", "fp8"]
"""int8: the integers from -127 to 127. fp8: e4m3, floats of 4 exponent and 3 mantissa bits up to 448, whose products
need the tensor cores of Ada, Hopper or Blackwell (compute capability 8.9 on)."""

DTYPES: dict[Format, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}

LARGEST: dict[Format, int] = {"int8": 127, "fp8": 448}
"""The code that the largest number of a row becomes. int8 leaves out -128, so that a sign costs nothing."""


def multiplies_fp8(device: torch.device) -> bool:
    """Whether `device` is a GPU whose tensor cores multiply FP8; a CPU emulates it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def code_width(cols: int) -> int:
    """Bytes of a row of codes, which begins where a thread can move several at once."""
    return bytes_of_row(cols, 8)


@dataclass(frozen=True)
class RowCodes:
    """A matrix W of `shape` (rows, cols) with W = codes * scales[:, None].

    codes int8 or float8_e4m3fn (rows, code_width(cols)), 0 in what is left of a row; scales fp32 (rows,), or None where
    whoever multiplies has them in the other factor. Both contiguous.
    """

    codes: Tensor
    scales: Tensor | None
    cols: int

    @classmethod
    def empty(cls, shape: tuple[int, int], format: Format, device: torch.device) -> "RowCodes":
        """Uninitialised memory for a matrix of `shape`."""
        rows, cols = shape
        codes = torch.empty(rows, code_width(cols), dtype=torch.uint8, device=device).view(DTYPES[format])
        return cls(codes, torch.empty(rows, dtype=torch.float32, device=device), cols)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.cols

    @property
    def format(self) -> Format:
        return "int8" if self.codes.dtype == torch.int8 else "fp8"

    def check(self, name: str) -> None:
        """ValueError unless the tensors are what the kernels take for granted."""
        rows, cols = self.shape
        check_matrix(f"{name}.codes", self.codes, (rows, code_width(cols)), list(DTYPES.values()))
        if not self.codes.is_contiguous():
            raise ValueError(f"{name}.codes must be contiguous")
        if self.scales is not None and (self.scales.shape != (rows,) or self.scales.dtype != torch.float32):
            raise ValueError(
                f"{name}.scales must be fp32 of shape {(rows,)}, not {self.scales.dtype} of {tuple(self.scales.shape)}"
            )
