"""Tests that launch Triton kernels: on a GPU where there is one, else in the interpreter in a process of its own.

tests/kernels/test_triton.py starts that process; the main one cannot run them, because Triton decides at its import.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture(autouse=True)
def fp8_where_it_is_multiplied(request):
    """Tests whose parameter `format` is fp8 need a GPU that has it; the interpreter does."""
    callspec = getattr(request.node, "callspec", None)
    asked = callspec is not None and callspec.params.get("format") == "fp8"
    if asked and os.environ.get("TRITON_INTERPRET") != "1" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8 products")


@pytest.fixture(autouse=True)
def triton_only(monkeypatch):
    """Whatever is called runs its kernel, and finds NaN in memory that it did not write, or the largest code."""
    monkeypatch.setenv("SPARLOW_KERNELS", "triton")
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(tensor):
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(127) if tensor.dtype in (torch.uint8, torch.int8) else tensor  # 127 is e4m3's NaN

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
