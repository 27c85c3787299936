"""Kernels launch on the GPU that their tensors are on."""

import ast
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels.backend import on_its_device

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize(("device", "entered"), [("cuda:1", ["cuda:1"]), ("cuda:0", []), ("cpu", [])])
def test_the_first_argument_decides_where_it_runs(device, entered, monkeypatch):
    """On a machine with two GPUs, of which the first is the current one."""
    found = []

    @contextlib.contextmanager
    def make_current(device):
        found.append(str(device))
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", make_current)
    tensor = SimpleNamespace(device=torch.device(device))
    op = on_its_device(lambda W, key=None: (W, key, list(found)))
    assert op(tensor, 3) == (tensor, 3, entered)
    found.clear()
    assert op(W=tensor) == (tensor, None, entered)


def test_whatever_launches_is_guarded():
    """An operation calls its launchers in functions that have the decorator."""
    launching = []
    for path in KERNELS.glob("*/__init__.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            called = {
                node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and hasattr(node.func, "id")
            }
            if any(name.startswith("launch_") for name in called):
                launching.append(f"{path.parent.name}.{function.name}")
                assert "on_its_device" in map(ast.unparse, function.decorator_list), launching[-1]
    assert len(launching) >= 10
