"""Sparlow's operations, one folder each: products of the linears, updates of weights, quantisation, and the loss.

What a file of an operation is for, its name says:
- `__init__.py` is what the model and the optimizers call. It checks the arguments, and chooses.
- `reference.py` is the definition: short, slow, and what all else is tested against.
- `in_torch.py` is the fast way in plain PyTorch, what runs on a CPU and where kernels are switched off
  (SPARLOW_KERNELS=torch). An operation without one runs its definition there.
- `in_triton.py` holds the Triton kernels and the functions that launch them on a GPU.

Start at low_rank_update, the smallest with all four; sparse_low_rank_linear is the linear that it is all about, and has
a choice of its own between two ways through it. Beside them: backend.py chooses between PyTorch and Triton, measured/
keeps the measurements of a device that decide where no rule does, triton_helpers.py has what kernels share, rounding.py
the same random bits in PyTorch, arguments.py checks, support.py and block_support.py where sparse entries lie, liger.py
what is taken from Liger Kernel. Products in eight bits are eight_bit_linear, made of
row_codes and code_product. Import from the operation's own package, e.g. `from kernels.quant import quantize`.
"""

from importlib.util import find_spec
from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    # `from kernels import backend` asks here before it looks for the submodule.
    if name.startswith("__") or find_spec(f"{__name__}.{name}"):
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    raise ImportError(
        f"cannot import name {name!r} from 'kernels': this is Sparlow's kernels package. The Hugging Face package "
        "'kernels' is shadowed because the process runs from Sparlow's repository root; set PYTHONSAFEPATH=1."
    )
