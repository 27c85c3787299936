"""What doctor says of speed and room: each line, and each fix, on a CPU with a stand-in for the GPU."""

import os
import tempfile
from types import SimpleNamespace

import pytest
import torch

from pretrain.machine import doctor, speed
from pretrain.machine.speed import Slow

H100 = SimpleNamespace(total_memory=int(79.5 * 2**30))


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A small disk test, four cores, and a good GPU."""
    monkeypatch.setattr(speed, "DISK_BYTES", 10**5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", *speed.ALLOCATOR_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: H100)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(speed, "version", lambda name: "0.8.0")
    monkeypatch.setattr(speed, "copy_rates", lambda: (55e9, 53e9))


def test_a_good_machine_needs_no_fix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "SLOW_DISK", 0)
    findings = {finding.what: finding for finding in doctor._speed()}
    assert [finding.status for finding in findings.values()] == ["ok"] * 8, findings
    assert findings["pinned memory"].detail == "55.0 GB/s to the GPU, 53.0 back, of 63.0 that PCIe 5.0 x16 has"
    assert findings["threads"].detail.startswith("4 in a process, on 4 cores; ")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [finding.what for finding in doctor._speed()] == ["threads", "host memory", "disk"]


def slow(check, *arguments):
    with pytest.raises(Slow) as raised:
        check(*arguments)
    return str(raised.value), raised.value.fix


@pytest.mark.parametrize(
    ("count", "variables", "fix"),
    [
        (8, {}, "unset OMP_NUM_THREADS, or set it to 4"),
        (1, {"OMP_NUM_THREADS": "1"}, "leaves cores idle"),
        (4, {"OMP_WAIT_POLICY": "ACTIVE"}, "one more busy process"),
        (4, {"GOMP_SPINCOUNT": "300000"}, "one more busy process"),
    ],
)
def test_threads(monkeypatch, count, variables, fix):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert fix in slow(speed.threads)[1]


def test_a_container_with_little_memory(monkeypatch):
    monkeypatch.setattr(speed, "machine_bytes", lambda: 64 * 10**9)
    monkeypatch.setattr(speed, "host_bytes", lambda: 10**9)
    monkeypatch.setattr(speed, "free_bytes", lambda device: 30 * 10**9)
    detail, fix = slow(speed.host_memory)
    assert detail == "1 GB of 1 GB free, the limit of this container"
    assert "raise the container's limit" in fix


def test_a_disk_that_is_full_slow_or_another_s(monkeypatch, tmp_path):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(speed, "write_rate", lambda folder: 9e6)
        assert slow(speed.disk, tmp_path)[0].endswith(f" free in {tmp_path}, written at 9 MB/s")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refused)
        assert slow(speed.disk, tmp_path)[0] == f"nothing can be written in {tmp_path} (Permission denied)"
    monkeypatch.setattr(speed.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    assert slow(speed.disk, tmp_path) == (
        f"1 GB free in {tmp_path}",
        "free some space, or set run.dir to a folder on a larger disk",
    )


def test_an_old_gpu_and_a_torch_without_flash_attention(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    detail, fix = slow(speed.bf16)
    assert detail == "compute capability 7.5 has no bf16"
    assert 'optimizer.weights = "fp32_master"' in fix
    assert slow(speed.attention)[0] == "flash attention needs compute capability 8.0"
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert slow(speed.attention)[0] == "this torch has no flash attention"


def test_liger_kernel_is_absent(monkeypatch):
    def absent(name):
        raise speed.PackageNotFoundError(name)

    monkeypatch.setattr(speed, "version", absent)
    assert slow(speed.liger_kernel)[1] == "pip install liger-kernel -c constraints.txt"


def test_the_allocator_names_its_settings(monkeypatch):
    assert "train.expandable_segments = true" in speed.allocator()
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert speed.allocator() == "PYTORCH_ALLOC_CONF=expandable_segments:True"


def test_a_connection_that_is_slow_unknown_or_not_to_be_had(monkeypatch):
    monkeypatch.setattr(speed, "copy_rates", lambda: (55e9, 12e9))
    assert "another slot may have more lanes" in slow(speed.connection)[1]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a laptop's")
    assert speed.connection() == "55.0 GB/s to the GPU, 12.0 back"
    assert [round(speed.pcie_peak(generation, 16) / 1e9, 1) for generation in (3, 4, 5)] == [15.8, 31.5, 63.0]

    def locked():
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(speed, "copy_rates", locked)
    assert "ulimit -l" in slow(speed.connection)[1]


def test_what_cannot_be_measured_breaks_nothing(monkeypatch):
    monkeypatch.setattr(speed, "host_bytes", lambda: 1 / 0)
    finding = next(finding for finding in doctor._speed() if finding.what == "host memory")
    assert (finding.status, finding.detail) == ("missing", "not measured (ZeroDivisionError: division by zero)")
