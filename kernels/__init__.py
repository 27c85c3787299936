"""Sparlow's operations: each has its definition in plain PyTorch (`reference.py`) and what the model calls (`op.py`).

Import from the operation's own package, e.g. `from kernels.linear_cross_entropy import linear_cross_entropy`.
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
