"""The dense linear whose weight is kept in 8-bit codes (Q-GaLore, arXiv 2407.08296, section 3.2)."""

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kernels.code_product import group_product
from kernels.eight_bit_linear import adjacent
from kernels.quant import Quantized, dequantize, quantize
from kernels.row_codes import quantize_rows
from model.linear.base import BaseLinear
from model.linear.dense import Dense
from model.linear.initial import draw_normal

GROUP = 256
"""Elements of a row that share a scale and a zero point."""

_scratch: WeakValueDictionary[tuple[Any, ...], Tensor] = WeakValueDictionary()
"""Memory for the largest dequantised matrix of each (dtype, device), there as long as a linear that has used it."""


class Int8Linear(BaseLinear):
    """y = x W^T with W (out, in) = (code - zero) scale, as `kernels.quant` has it; 1.02 bytes per element.

    What a Dense becomes with optimizer.weights = "int8". Codes receive no gradient from autograd, so the backward pass
    hands dW (out, in), in the dtype of x, to `sink`; without one a backward pass is a RuntimeError. W is dequantised
    for each product, into memory that all linears share; INT8 products multiply the codes in the forward pass as they
    are stored. (In the backward pass, W's rows are what is summed over, and a row has a scale for each group: there W
    is quantised again, with one.)
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    projectable = ("weight",)
    silent_at_zero = ()

    def __init__(self, config: Dense.Config, in_features: int, out_features: int, name: str, init_std: float):
        super().__init__(in_features, out_features, name, init_std)
        self.config = config
        empty = Quantized.empty((out_features, in_features), 8, GROUP, torch.empty(0).device)
        self.register_buffer("codes", empty.codes)
        self.register_buffer("scales", empty.scales)
        self.register_buffer("zeros", empty.zeros)
        self.sink: Callable[[Tensor], None] | None = None
        """Takes dW of each backward pass."""
        self.scratch_numel = out_features * in_features
        """Elements of the scratch memory to make where there is none."""
        self._used: Tensor | None = None  # keeps the scratch memory alive

    @property
    def quantized(self) -> Quantized:
        """The weight, sharing memory with the buffers."""
        return Quantized(self.codes, self.scales, self.zeros, (self.out_features, self.in_features), 8, GROUP)

    def store(self, weight: Tensor, key: int | None = None) -> None:
        """Keep `weight` (out, in), with new scales and zeros: to nearest, or by 32 bits `key` stochastically."""
        q = quantize(weight, 8, GROUP, key)
        self.codes.copy_(q.codes)
        self.scales.copy_(q.scales)
        self.zeros.copy_(q.zeros)

    def forward(self, x: Tensor) -> Tensor:
        leaf = None
        if torch.is_grad_enabled() and not x.requires_grad:
            leaf = torch.empty((), device=x.device, requires_grad=True)  # or backward would not come by
        return _Product.apply(x, leaf, self)

    def reset_parameters(self, seed: int) -> None:
        weight = torch.empty(self.out_features, self.in_features, device=self.codes.device)
        draw_normal(self.config.init, weight, self.init_std, seed, f"{self.name}.weight")
        self.store(weight)

    def dense_weight(self) -> Tensor:
        return dequantize(self.quantized, torch.float32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.out_features, self.in_features)}

    count_parameters = staticmethod(Dense.count_parameters)
    multiplies_matrix = staticmethod(Dense.multiplies_matrix)

    def scratch_weight(self, dtype: torch.dtype) -> Tensor:
        """W in memory that the next call of any linear overwrites."""
        return dequantize(self.quantized, dtype, self.scratch(dtype))

    def scratch(self, dtype: torch.dtype) -> Tensor:
        """Return that memory (out, in), whatever is in it."""
        shape, device = torch.Size((self.out_features, self.in_features)), self.codes.device
        memory = _scratch.get((dtype, device))
        if memory is None or memory.numel() < shape.numel():
            memory = _scratch[dtype, device] = torch.empty(self.scratch_numel, dtype=dtype, device=device)
        self._used = memory
        return memory[: shape.numel()].view(shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        """Scales stay fp32 in whatever dtype the rest of a model is put."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != torch.float32:
            self.scales = scales.to(self.scales.device)
        return self


class _Product(torch.autograd.Function):
    """x W^T, of which x alone is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor | None, linear: Int8Linear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.linear, ctx.how = linear, linear.products
        if ctx.how is None:
            return F.linear(x, linear.scratch_weight(x.dtype))
        flat = x.reshape(-1, linear.in_features)
        if ctx.how.format == "int8":
            linear.scratch(x.dtype)  # for the backward pass: a run that begins shall have room to go on
            y = group_product(quantize_rows(adjacent(flat), "int8"), linear.quantized, x.dtype)
        else:
            y = ctx.how.forward(flat, ctx.how.codes(linear.scratch_weight(x.dtype)))
        return y.view(*x.shape[:-1], linear.out_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        (x,), linear = ctx.saved_tensors, ctx.linear
        if linear.sink is None:
            raise RuntimeError(f"{linear.name}: nothing takes the gradient of its codes; build an optimizer first")
        g, flat, how = dy.reshape(-1, linear.out_features), x.reshape(-1, linear.in_features), ctx.how
        dx = None
        if ctx.needs_input_grad[0]:
            W = linear.scratch_weight(dy.dtype)
            dx = (g @ W if how is None else how.input_gradient(g, how.codes(W))).view_as(x)
        linear.sink(g.t() @ flat if how is None else how.weight_gradient(g, flat))
        return dx, None, None


def to_int8(model: nn.Module) -> None:
    """Put an Int8Linear, without values, in the place of every Dense inside of `model`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Dense):
                linear = Int8Linear(child.config, child.in_features, child.out_features, child.name, child.init_std)
                setattr(module, name, linear)
    linears = [module for module in model.modules() if isinstance(module, Int8Linear)]
    largest = max((linear.scratch_numel for linear in linears), default=0)
    for linear in linears:
        linear.scratch_numel = largest
