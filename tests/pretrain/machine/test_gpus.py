"""A GPU's row is found by its whole name or not at all, and its peak is what its tensor cores can do."""

import pytest
import torch

from model.errors import UserError
from pretrain.machine.gpus import GEFORCE_FMA, GIB, GPUS, Gpu, by_name, of_device
from pretrain.machine.hardware import peak_flops

PROFESSIONAL_FMA, GA100_FMA, GH100_FMA = 2 * GEFORCE_FMA, 1024, 2048
ARITHMETIC = {
    "RTX 3060": (28, GEFORCE_FMA, 1.777),
    "RTX 3080 10GB": (68, GEFORCE_FMA, 1.71),
    "RTX 3080 12GB": (70, GEFORCE_FMA, 1.71),
    "RTX 3090": (82, GEFORCE_FMA, 1.695),
    "RTX 3090 Ti": (84, GEFORCE_FMA, 1.86),
    "RTX 4060 Ti": (34, GEFORCE_FMA, 2.535),
    "RTX 4070 Ti SUPER": (66, GEFORCE_FMA, 2.61),
    "RTX 4080": (76, GEFORCE_FMA, 2.505),
    "RTX 4080 SUPER": (80, GEFORCE_FMA, 2.55),
    "RTX 4090": (128, GEFORCE_FMA, 2.52),
    "RTX 5060 Ti": (36, GEFORCE_FMA, 2.572),
    "RTX 5070 Ti": (70, GEFORCE_FMA, 2.452),
    "RTX 5080": (84, GEFORCE_FMA, 2.617),
    "RTX 5090": (170, GEFORCE_FMA, 2.407),
    "RTX A6000": (84, PROFESSIONAL_FMA, 1.8),
    "RTX 6000 Ada Generation": (142, PROFESSIONAL_FMA, 2.505),
    "A10G": (80, GEFORCE_FMA, 1.71),
    "L4": (58, PROFESSIONAL_FMA, 2.04),
    "L40S": (142, PROFESSIONAL_FMA, 2.52),
    "A100-PCIE-40GB": (108, GA100_FMA, 1.41),
    "A100-SXM4-40GB": (108, GA100_FMA, 1.41),
    "A100 80GB PCIe": (108, GA100_FMA, 1.41),
    "A100-SXM4-80GB": (108, GA100_FMA, 1.41),
    "H100 PCIe": (114, GH100_FMA, 1.62),
    "H100 80GB HBM3": (132, GH100_FMA, 1.83),
    "H200": (132, GH100_FMA, 1.83),
}
"""SMs, multiply-adds per clock and SM, boost clock in GHz. The NVL cards and the B200 have no published clock at which
their data sheets' peaks hold."""


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.label)
def test_every_row(gpu: Gpu) -> None:
    assert of_device(gpu.name, gpu.memory_bytes) is gpu
    assert of_device(gpu.name.removeprefix("NVIDIA "), gpu.memory_bytes) is gpu  # as older drivers name it
    assert by_name(gpu.label) is by_name(f" geforce  {gpu.label.lower()}") is gpu
    assert by_name(f"{gpu.name} {gpu.memory:g}GB") is gpu
    if gpu.label in ARITHMETIC:
        sms, fma, ghz = ARITHMETIC[gpu.label]
        assert gpu.tflops == pytest.approx(sms * fma * 2 * ghz / 1000, rel=0.015)
    else:
        assert gpu.label in {"H100 NVL", "H200 NVL", "B200"}
    assert str(gpu).startswith(f"{gpu.label}: {gpu.tflops:g} TFLOP/s")
    assert gpu.pcie[0] in (4, 5)
    assert gpu.pcie[1] in (8, 16)


def test_two_cards_share_a_name() -> None:
    """The one that CUDA shows 9.6 GiB of is not the one of 12."""
    name = "NVIDIA GeForce RTX 3080"
    assert [of_device(name, int(shown * GIB)).tflops for shown in (9.6, 11.6)] == [59.5, 61.3]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4070 Ti",
        "NVIDIA GeForce RTX 5070",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A10",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "NVIDIA H20",
        "Tesla T4",
        "",
    ],
)
def test_another_device_has_no_peak(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_device(name, 24 * GIB) is None
    assert _peak_of(name, 24 * GIB, monkeypatch) is None


def test_a_device_s_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _peak_of("NVIDIA GeForce RTX 4080 SUPER", 16 * GIB, monkeypatch) == 104.4e12
    assert _peak_of("NVIDIA GeForce RTX 4080", 16 * GIB, monkeypatch) == 97.5e12
    assert _peak_of("NVIDIA H100 PCIe", 79 * GIB, monkeypatch) == 756e12
    assert peak_flops(torch.device("cpu")) is None


def _peak_of(name: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> float | None:
    class Properties:
        total_memory = memory

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    return peak_flops(torch.device("cuda"))


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("RTX 3080", "; nearest: RTX 3080 10GB, RTX 3080 12GB;"),
        ("h100", "; nearest: H100 PCIe, H100 NVL, H100 80GB HBM3;"),
        ("A100", "; nearest: A100-PCIE-40GB, A100-SXM4-40GB, A100 80GB PCIe, A100-SXM4-80GB;"),
        ("4090", "; nearest: RTX 4090;"),
        ("RTX 4090 Laptop GPU", "; nearest: RTX 4090;"),
        ("RTX 5070", "; nearest: RTX 5070 Ti;"),
        ("potato", "known here; `--gpu all`"),
        ("", "known here; `--gpu all`"),
    ],
)
def test_an_unknown_name_gives_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        by_name(text)
    message = str(error.value)
    assert message.startswith(f"--gpu {text!r} is not a card")
    assert near in message
    assert "\n" not in message
