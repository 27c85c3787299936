"""The checks behind `sparlow doctor`. Each is small and real: it runs the thing it reports on."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

from pretrain.hardware import device_name, has_bf16, peak_flops

NEEDED = ("torch", "deepspeed", "triton", "sentencepiece", "datasets", "tensorboard", "safetensors", "pydantic", "rich")
OPTIONAL = {"transformers": "checks an export on its own", "liger-kernel": "fused standard ops on a GPU"}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `missing` is an option that is absent, `broken` something that training needs."""

    what: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, most basic first."""
    findings = [Finding("python", "ok", sys.version.split()[0])]
    findings += [_package(name, needed=True) for name in NEEDED]
    findings += [_package(name, needed=False) for name in OPTIONAL]
    findings += [_device(), _launcher("torchrun"), _launcher("deepspeed"), _attempt("deepspeed engine", _engine_step)]
    return findings


def _package(name: str, needed: bool) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        fix = f"pip install {name} -c constraints.txt"
        if needed:
            return Finding(name, "broken", "not installed", fix)
        return Finding(name, "missing", f"not installed; it {OPTIONAL[name]}", fix)


def _device() -> Finding:
    if torch.cuda.is_available():
        device = torch.device("cuda")
        free, total = torch.cuda.mem_get_info()
        peak = peak_flops(device)
        mfu = f"peak {peak / 1e12:.0f} TFLOP/s" if peak else "peak unknown: set metrics.peak_tflops to log MFU"
        memory = f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        return Finding("device", "ok", f"{torch.cuda.device_count()} x {device_name(device)}, {memory}, {mfu}")
    device = torch.device("cpu")
    precision = "bf16 instructions" if has_bf16(device) else "no bf16 instructions, so train.dtype = auto means fp32"
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return Finding("device", "broken", "this torch has CUDA, but finds no GPU", "check the driver with nvidia-smi")
    return Finding("device", "ok", f"{device_name(device)}, {os.cpu_count()} cores, {precision}")


def _launcher(name: str) -> Finding:
    module = {"torchrun": "torch.distributed.run", "deepspeed": "deepspeed.launcher.runner"}[name]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return Finding(f"{name} launcher", "broken", "not importable", f"pip install {name}")
    return Finding(f"{name} launcher", "ok", f"launch/{name}.sh")


def _attempt(what: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", work())
    except Exception as error:
        return Finding(what, "broken", f"{type(error).__name__}: {error}", "reinstall with launch/quickstart.sh")


def _engine_step() -> str:
    """One real optimizer step through DeepSpeed."""
    from pretrain import distributed
    from pretrain.engine.accelerator import import_deepspeed

    with distributed.processes() as world:
        net = torch.nn.Linear(4, 4).to(world.device)
        before = net.weight.detach().clone()
        settings = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "zero_optimization": {"stage": 1}}
        engine, *_ = import_deepspeed().initialize(
            model=net, optimizer=torch.optim.AdamW(net.parameters(), lr=0.1), config=settings
        )
        engine.backward(engine(torch.ones(1, 4, device=world.device)).sum())
        engine.step()
        moved = not torch.equal(before, engine.module.weight.detach())
        engine.destroy()
    if not moved:
        raise RuntimeError("a step left the weights as they were")
    return "one step at ZeRO stage 1"
