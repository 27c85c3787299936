"""Compiling the kernels for a GPU that is not there, and reading what they would use of it.

`record` runs a launcher on tensors of device meta and keeps what it would have launched; `compile_launch` compiles that
launch for an architecture as Triton's runtime would on the card, with the same specialisation: pointers and integers
divisible by 16 are marked so, an integer 1 becomes a constant. Without that, kernels compile to something else.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that a block may take, by architecture (CUDA C++ Programming Guide, compute capabilities).

The compiler accepts more; the launch would then fail.
"""

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.uint16: "u16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the function, the type of each run-time argument, the constants and the options."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses: registers and bytes of stack per thread (spills lie there), shared bytes a block."""

    registers: int
    stack: int
    shared: int
    wgmma: bool
    mma: bool
    cp_async: bool


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Inside, launching a Triton kernel adds to the list and runs nothing."""
    launches: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = _launch(kernel, args, kwargs)
        if launch not in launches:
            launches.append(launch)

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    assert values.keys() == set(kernel.arg_names), f"{kernel.fn.__name__}: {values.keys() ^ set(kernel.arg_names)}"
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if (
            parameter.is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize)
        ):
            signature.append((parameter.name, "constexpr"))
            constants.append((parameter.name, value))
            continue
        if isinstance(value, torch.Tensor):
            signature.append((parameter.name, f"*{TYPES[value.dtype]}"))
            divisible.append(index)  # torch allocates at multiples of 512 bytes
        elif isinstance(value, float):
            signature.append((parameter.name, "fp32"))
        else:
            signature.append((parameter.name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % 16 == 0 and not parameter.do_not_specialize:
                divisible.append(index)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), tuple(options.items()))


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile `launch` for sm_`capability`."""
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    ptx = compiled.asm["ptx"]
    registers, stack = _use(compiled.asm["cubin"])
    return Resources(
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        wgmma="wgmma.mma_async" in ptx,
        mma="mma.sync" in ptx or "tcgen05.mma" in ptx,
        cp_async="cp.async" in ptx,
    )


def _use(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread."""
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    match = re.search(r"REG:(\d+) STACK:(\d+)", report.stdout)
    assert match, report.stdout
    return int(match[1]), int(match[2])
