"""Tensors without data: inside of a Trace, whatever is made is on the device meta, and its memory is written down.

The modes are of one thread and end with their block: nothing of the process is replaced, no cache is cleared, and other
threads compute on.
"""

import contextlib
import gc
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.backend import Backend, configured
from pretrain.memory_plan import cpu, gpu
from pretrain.memory_plan.ledger import Item, Ledger

META = torch.device("meta")

CASTS = (torch.ops.aten._to_copy.default, torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Scalar)
"""Operations that make something of weights alone: a copy of them."""


class Trace(TorchDispatchMode):
    """Writes every storage into `ledger`. Numbers that the host reads are all one, and every test is true."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.scope: Item | None = None
        """What new memory is, but for what is known better."""
        self.recomputes = False
        """Whether operations that autograd follows make activations: those of the backward pass do."""
        self._shapes: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # operations are made of others in Python
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0
            out = self._run(func, args, kwargs or {})
            if type(out) is Tensor:
                self._see(func, args, out)
            else:
                for tensor in tree_leaves(out):
                    if isinstance(tensor, Tensor):
                        self._see(func, args, tensor)
            return out

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What `func` gives; of operations that have met the same shapes, from memory."""
        if func is torch.ops.aten.lift_fresh.default:
            return args[0].to(META)
        if func is torch.ops.aten.bincount.default:  # as many as it is told, no value being larger
            return torch.empty(args[2], dtype=torch.int64, device=META)
        kind = _kind(func)
        if kind is Kind.IN_PLACE:
            return args[0]
        kwargs = _without_data(func, kwargs)
        if kind is Kind.OTHER:
            return func(*args, **kwargs)
        key = _key(func, args, kwargs)
        like = self._shapes.get(key) if key is not None else None
        if like is not None:
            return torch.empty_strided(like[0], like[1], dtype=like[2], device=META)
        out = func(*args, **kwargs)
        if key is not None and type(out) is Tensor:
            self._shapes[key] = (out.shape, out.stride(), out.dtype)
        return out

    def _see(self, func: Any, args: Any, tensor: Tensor) -> None:
        if self.ledger.item(tensor) is None:
            self.ledger.see(tensor, self._name(func, args))

    def _name(self, func: Any, args: Any) -> Item:
        if func in CASTS and isinstance(args[0], Tensor) and self.ledger.item(args[0]) in ("weights", "weight_copies"):
            return "weight_copies"
        if self.scope is not None:
            return self.scope
        return "activations" if self.recomputes and torch.is_grad_enabled() else "temporaries"


class Kind(Enum):
    """An operation: on its first argument and of its shape; one new tensor, by shapes alone; or any other."""

    IN_PLACE, NEW, OTHER = range(3)


@cache
def _kind(func: Any) -> Kind:
    schema = func._schema
    aliases = [argument.alias_info for argument in schema.arguments]
    if len(schema.returns) != 1 or str(schema.returns[0].type) != "Tensor":
        return Kind.OTHER
    if not any(aliases):
        return Kind.NEW if schema.returns[0].alias_info is None else Kind.OTHER
    changes = aliases[0] is not None and aliases[0].is_write and func._opname.endswith("_")
    return Kind.IN_PLACE if changes and torch.Tag.inplace_view not in func.tags else Kind.OTHER


def _key(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the shape of the result depends on; None where it cannot be compared."""
    key: list[Any] = [func]
    for value in (*args, *kwargs.items()):
        if isinstance(value, Tensor):
            key.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list):
            if any(isinstance(part, Tensor) for part in value):
                return None
            key.append(tuple(value))
        else:
            key.append((value, type(value)))
    return tuple(key)


def _without_data(func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """On meta, where there are no pinned pages, nor generators."""
    if not kwargs and not _has_device(func):
        return kwargs
    changed = {key: None if key in ("generator", "pin_memory") else value for key, value in kwargs.items()}
    if _has_device(func) and (changed.get("device") is not None or "self" not in _arguments(func)):
        changed["device"] = META
    return changed


@cache
def _arguments(func: Any) -> frozenset[str]:
    return frozenset(argument.name for argument in func._schema.arguments)


@cache
def _has_device(func: Any) -> bool:
    return "device" in _arguments(func)


class Paths(TorchFunctionMode):
    """Inside, tensors without data take the paths of a CPU, or with `cuda` of a GPU: they say that they are on one.

    On a GPU, what is made without the name of a device is in host memory, which `ledger` does not count, and goes to
    the device as a copy.
    """

    def __init__(self, ledger: Ledger, cuda: bool) -> None:
        super().__init__()
        self.ledger, self.cuda = ledger, cuda
        self._answers: dict[Any, Any] = {
            Tensor.tolist: _tolist,
            F.scaled_dot_product_attention: cpu.attention,
            torch.sparse_csr_tensor: cpu.Sparse,
            torch.sparse.sampled_addmm: cpu.sampled_addmm,
            Tensor.backward: self._backward,
        }
        if cuda:
            self._answers |= {
                Tensor.is_cuda.__get__: lambda tensor: True,  # type: ignore[attr-defined]
                Tensor.to: self._to,
                F.rms_norm: gpu.rms_norm,
                F.scaled_dot_product_attention: gpu.attention,
            }
            self._answers |= {make: self._maker(make) for make in (torch.empty, torch.zeros, torch.ones, torch.full)}
            self._answers |= {make: self._maker(make) for make in (torch.randn, torch.rand, torch.randint)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._answers.get(func, func)(*args, **(kwargs or {}))

    def _maker(self, make: Any) -> Any:
        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            tensor = make(*args, device=META, **kwargs)
            if device is None or torch.device(device).type == "cpu":
                self.ledger.mark([tensor], "host")
            return tensor

        return made

    def _backward(self, tensor: Tensor, **_: Any) -> None:
        """In the mode, which PyTorch leaves to ask it for an answer: there are hooks to be called."""
        with self:
            torch.autograd.graph._engine_run_backward(
                (tensor,), (torch.ones_like(tensor),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = kwargs.get("device", args[0] if args else None)
        if isinstance(target, torch.device | str) and self.ledger.item(tensor) == "host":
            return tensor.to(*args, **kwargs).clone() if torch.device(target).type != "cpu" else tensor
        return tensor.to(*args, **kwargs)


def _tolist(tensor: Tensor) -> Any:
    return [_tolist(row) for row in tensor] if tensor.dim() else 1.0


@contextlib.contextmanager
def tracing(ledger: Ledger, cuda: bool, backend: Backend = "auto") -> Iterator[Trace]:
    """Inside, there is no data, and memory goes into `ledger`, by the paths of a CPU or a GPU with these kernels."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_collections())
        stack.enter_context(configured(backend))
        if cuda:
            stack.enter_context(gpu.launches_left_out())
        stack.enter_context(Paths(ledger, cuda))
        yield stack.enter_context(Trace(ledger))


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Inside, memory goes when its last user does: collections at odd moments take time, and would change the count."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
