"""The checks behind `sparlow doctor`: installed versions, the device, and whether launchers and engine run here.

Nothing heavy is imported before it is known to be installed, so an empty environment gets a report too.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

NEEDED = (
    *("torch", "deepspeed", "triton", "sentencepiece", "tokenizers", "datasets", "tensorboard", "safetensors"),
    *("pydantic", "rich", "matplotlib", "numpy"),
)
OPTIONAL = {"transformers": "checks an export independently"}


class Broken(Exception):
    """A check that failed, in words."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `missing` is an option that is absent, `broken` something that training needs."""

    what: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, most basic first; what needs an absent package is left out."""
    packages = [_package(name) for name in (*NEEDED, *OPTIONAL)]
    findings = [Finding("python", "ok", sys.version.split()[0]), *packages]
    absent = {package.what for package in packages if package.status == "broken"}
    if "torch" not in absent:
        torchrun = partial(_launcher, "torchrun.sh", "-m", "torch.distributed.run", "--help")
        findings.append(_attempt("device", _device, "check the driver with nvidia-smi, and that torch is built for it"))
        findings += _speed()
        findings.append(_attempt("torchrun launcher", torchrun, _install("torch")))
    if not absent & {"torch", "deepspeed"}:
        runner = partial(_launcher, "deepspeed.sh", "-c", "import deepspeed.launcher.runner")
        findings.append(_attempt("deepspeed launcher", runner, _install("torch", "deepspeed")))
    if not absent:
        findings.append(_attempt("deepspeed engine", _engine_step, _install("torch", "deepspeed")))
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        if name in OPTIONAL:
            return Finding(name, "missing", f"not installed; it {OPTIONAL[name]}", _install(name))
        return Finding(name, "broken", "not installed", _install(name))


def _install(*names: str) -> str:
    """The command that brings the versions that were tested together."""
    return f"pip install {' '.join(names)} -c constraints.txt"


def _attempt(what: str, work: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(what, "ok", work())
    except Broken as error:
        return Finding(what, "broken", str(error), fix)
    except Exception as error:
        return Finding(what, "broken", f"{type(error).__name__}: {error}", fix)


def _device() -> str:
    import torch

    from kernels.measured import device_name
    from pretrain.machine.hardware import has_bf16, peak_flops
    from pretrain.machine.memory import readable

    if torch.cuda.is_available():
        device = torch.device("cuda")
        free, total = torch.cuda.mem_get_info()
        peak = peak_flops(device)
        mfu = f"peak {peak / 1e12:.0f} TFLOP/s" if peak else "peak unknown: set metrics.peak_tflops to log MFU"
        memory = f"{readable(free)} of {readable(total)} free"
        return f"{torch.cuda.device_count()} x {device_name(device)}, {memory}, {mfu}"
    if torch.version.cuda and shutil.which("nvidia-smi"):
        raise Broken("this torch has CUDA, but finds no GPU")
    device = torch.device("cpu")
    precision = "bf16 instructions" if has_bf16(device) else "no bf16 instructions, so train.dtype = auto means fp32"
    return f"{device_name(device)}, {os.cpu_count()} cores, {precision}"


def _speed() -> list[Finding]:
    """What costs a run speed or room is an option that is absent: it trains without."""
    from pretrain.machine.speed import Slow, checks

    findings = []
    for what, check in checks().items():
        try:
            findings.append(Finding(what, "ok", check()))
        except Slow as slow:
            findings.append(Finding(what, "missing", str(slow), slow.fix))
        except Exception as error:
            findings.append(Finding(what, "missing", f"not measured ({type(error).__name__}: {error})"))
    return findings


def _launcher(script: str, *arguments: str) -> str:
    _run_python(*arguments)
    return f"starts; see launch/{script}"


def _run_python(*arguments: str) -> None:
    """Run a short Python command; Broken with the last line of its output when it fails."""
    import torch

    device = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-P", *arguments]  # not with what lies in the present folder
    result = subprocess.run(command, env=os.environ | device, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Broken((result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1])


def _engine_step() -> str:
    """One real optimizer step through DeepSpeed."""
    import torch

    from pretrain.machine import distributed
    from pretrain.machine.distributed import import_deepspeed

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
        raise Broken("a step left the weights as they were")
    return "one step at ZeRO stage 1"
