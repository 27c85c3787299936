"""GPUs by name: the peaks behind a run's MFU and behind the speed that a plan models."""

import difflib
from dataclasses import dataclass
from typing import Literal

from model.errors import UserError

GIB = 1024**3

GEFORCE_FMA = 256
"""Multiply-adds of bf16 with fp32 accumulation that an SM of a GeForce card does per clock, from Ampere to Blackwell:
half of what it does with fp16 accumulation, and of the 512 that an SM of the same chip does on a professional card."""

GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A"
ADA = "NVIDIA Ada GPU architecture whitepaper, appendix A"
ADA_PRO = "NVIDIA Ada professional graphics architecture whitepaper"
BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper, appendices A and B"
HOPPER = "NVIDIA H100 Tensor Core GPU architecture whitepaper, table 3"
COMPUTED = "computed from NVIDIA's SMs and boost clock"
"""Marks a row whose peak NVIDIA does not publish."""


@dataclass(frozen=True)
class Gpu:
    """A row of the table."""

    name: str
    """What torch.cuda.get_device_name gives."""
    generation: Literal["Ampere", "Ada", "Hopper", "Blackwell"]
    """NVIDIA's name of the architecture."""
    tflops: float
    """Peak of the tensor cores at the boost clock: bf16 with fp32 accumulation, without sparsity, in TFLOP/s."""
    memory: float
    """GiB that nvidia-smi shows, to the nearest half: less than sold where error correction takes some."""
    bandwidth: float
    """Bytes per second to and from that memory, in GB/s (1e9)."""
    pcie: tuple[int, int]
    """Generation and lanes of the card's own connector; the board it sits in may have less."""
    source: str
    """The document that gives the peak; where it counts sparsity, half of its number."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory * GIB)

    @property
    def rates(self) -> dict[str, int]:
        """How many times as fast as bf16, with sums in 32 bits, it multiplies int8 and fp8; 0 where it cannot.

        By the whitepapers: twice, as the numbers are half as wide. A GeForce card is held back in fp32 sums, of bf16
        and fp8 alike, and not in the integer sums of int8: four times.
        """
        fp8 = 0 if self.generation == "Ampere" else 2
        return {"bf16": 1, "int8": 4 if "GeForce" in self.name else 2, "fp8": fp8}

    @property
    def label(self) -> str:
        """The name without its maker, and with the memory where two cards share the name."""
        shared = sum(other.name == self.name for other in GPUS) > 1
        short = self.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
        return f"{short} {self.memory:g}GB" if shared else short

    def __str__(self) -> str:
        generation, lanes = self.pcie
        return (
            f"{self.label}: {self.tflops:g} TFLOP/s in bf16, {self.memory:g} GiB, {self.bandwidth:g} GB/s, "
            f"PCIe {generation}.0 x{lanes} ({self.source})"
        )


def _computed(sms: int, ghz: float) -> float:
    """The peak in TFLOP/s of a GeForce card by the formula that gives every number of the whitepapers."""
    return round(sms * GEFORCE_FMA * 2 * ghz / 1000, 1)


GPUS = (
    Gpu("NVIDIA GeForce RTX 3060", "Ampere", _computed(28, 1.777), 12, 360, (4, 16), COMPUTED),
    Gpu("NVIDIA GeForce RTX 3080", "Ampere", 59.5, 10, 760, (4, 16), GA102),
    Gpu("NVIDIA GeForce RTX 3080", "Ampere", _computed(70, 1.71), 12, 912, (4, 16), COMPUTED),
    Gpu("NVIDIA GeForce RTX 3090", "Ampere", 71, 24, 936, (4, 16), GA102),
    Gpu("NVIDIA GeForce RTX 3090 Ti", "Ampere", 80, 24, 1008, (4, 16), ADA),
    Gpu("NVIDIA GeForce RTX 4060 Ti", "Ada", _computed(34, 2.535), 16, 288, (4, 8), COMPUTED),
    Gpu("NVIDIA GeForce RTX 4070 Ti SUPER", "Ada", _computed(66, 2.61), 16, 672, (4, 16), COMPUTED),
    Gpu("NVIDIA GeForce RTX 4080", "Ada", 97.5, 16, 717, (4, 16), ADA),
    Gpu("NVIDIA GeForce RTX 4080 SUPER", "Ada", _computed(80, 2.55), 16, 736, (4, 16), COMPUTED),
    Gpu("NVIDIA GeForce RTX 4090", "Ada", 165.2, 24, 1008, (4, 16), ADA),
    Gpu("NVIDIA GeForce RTX 5060 Ti", "Blackwell", _computed(36, 2.572), 16, 448, (5, 8), COMPUTED),
    Gpu("NVIDIA GeForce RTX 5070 Ti", "Blackwell", 87.9, 16, 896, (5, 16), BLACKWELL),
    Gpu("NVIDIA GeForce RTX 5080", "Blackwell", 112.6, 16, 960, (5, 16), BLACKWELL),
    Gpu("NVIDIA GeForce RTX 5090", "Blackwell", 209.5, 32, 1792, (5, 16), BLACKWELL),
    Gpu("NVIDIA RTX A6000", "Ampere", 154.8, 48, 768, (4, 16), GA102),
    Gpu("NVIDIA RTX 6000 Ada Generation", "Ada", 364.2, 48, 960, (4, 16), ADA_PRO),
    Gpu("NVIDIA A10G", "Ampere", 70, 22.5, 600, (4, 16), "NVIDIA A10G data sheet for AWS"),
    Gpu("NVIDIA L4", "Ada", 121, 22.5, 300, (4, 16), "NVIDIA L4 data sheet"),
    Gpu("NVIDIA L40S", "Ada", 362, 45, 864, (4, 16), "NVIDIA L40S data sheet"),
    Gpu("NVIDIA A100-PCIE-40GB", "Ampere", 312, 40, 1555, (4, 16), "NVIDIA A100 data sheet"),
    Gpu("NVIDIA A100-SXM4-40GB", "Ampere", 312, 40, 1555, (4, 16), "NVIDIA A100 data sheet"),
    Gpu("NVIDIA A100 80GB PCIe", "Ampere", 312, 80, 1935, (4, 16), "NVIDIA A100 data sheet"),
    Gpu("NVIDIA A100-SXM4-80GB", "Ampere", 312, 80, 2039, (4, 16), "NVIDIA A100 data sheet"),
    Gpu("NVIDIA H100 PCIe", "Hopper", 756, 79.5, 2000, (5, 16), HOPPER),
    Gpu("NVIDIA H100 NVL", "Hopper", 835, 93.5, 3900, (5, 16), "NVIDIA H100 data sheet"),
    Gpu("NVIDIA H100 80GB HBM3", "Hopper", 989, 79.5, 3350, (5, 16), HOPPER),
    Gpu("NVIDIA H200 NVL", "Hopper", 835, 140.5, 4800, (5, 16), "NVIDIA H200 data sheet"),
    Gpu("NVIDIA H200", "Hopper", 989, 140.5, 4800, (5, 16), "NVIDIA H200 data sheet"),
    Gpu("NVIDIA B200", "Blackwell", 2250, 179, 7700, (5, 16), "NVIDIA Blackwell data sheet, HGX B200"),
)
"""Cards that people train on. Another one's MFU needs `metrics.peak_tflops`, its plan `--gpu-tflops`."""


def of_device(name: str, memory_bytes: int) -> Gpu | None:
    """The row of a device that CUDA calls `name`; of two with that name the nearer one in memory.

    Only the whole name counts: a laptop's GPU, a card's slice (MIG) and an "RTX 4090 D" begin like another and have
    other peaks, so they are None, as all unknown names are. Older drivers leave out "NVIDIA".
    """
    rows = (gpu for gpu in GPUS if _key(gpu.name) == _key(name))
    return min(rows, key=lambda gpu: abs(gpu.memory_bytes - memory_bytes), default=None)


def by_name(text: str) -> Gpu:
    """The row that a user means by `text`, e.g. "RTX 4090" or "RTX 3080 12GB"; UserError when it is none or two."""
    for gpu in GPUS:
        if _key(text) in (_key(gpu.label), f"{_key(gpu.name)} {gpu.memory:g}gb"):
            return gpu
    labels, words = {_key(gpu.label): gpu.label for gpu in GPUS}, _words(text)
    near = [key for key in labels if words and (words <= _words(key) or _words(key) <= words)]
    near = near or difflib.get_close_matches(_key(text), labels, 3)
    nearest = f"; nearest: {', '.join(labels[key] for key in near)}" if near else ""
    raise UserError(
        f"--gpu {text!r} is not a card that is known here{nearest}; `--gpu all` lists them, and --gpu-memory with "
        "--gpu-tflops describe any other"
    )


def _key(name: str) -> str:
    """What is compared: upper and lower case, spaces and the maker do not matter."""
    return " ".join(name.casefold().split()).removeprefix("nvidia ").removeprefix("geforce ")


def _words(name: str) -> set[str]:
    return set(_key(name).replace("-", " ").split())
