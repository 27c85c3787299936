"""AdamW with choices of moments, weights and time: whole parameters shared out over ranks."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.linear.merging import Reset
from model.seeding import derive_seed
from pretrain.optim.adamw_part import AdamWPart
from pretrain.optim.config import OwnConfig
from pretrain.optim.element import Element, State
from pretrain.optim.exchange import Exchange, share_out
from pretrain.optim.orthograd import orthogonal


class Part(Protocol):
    """A parameter, or a matrix of a subclass."""

    name: str
    owner: int
    state: State

    @property
    def rounds(self) -> bool:
        """Whether it is kept in less than fp32."""

    def cost(self, config: Any) -> float:
        """Cost of its steps to its owner."""


class OwnOptimizer(torch.optim.Optimizer):
    """Steps `named_parameters` with AdamW; those named in `apart` are a subclass's own affair.

    Each part has one owner among the ranks of `exchange`, which keeps its moments. Gradients come as means over
    micro-steps; `step` takes their mean over ranks. torch.optim.Optimizer is the interface DeepSpeed expects; state is
    kept by parameter name, in `tensors`.
    """

    counts: tuple[str, ...] = ("updates",)
    """Attributes that are state."""
    norm_name = "grad_norm"
    """The name that `grad_norm` is logged by."""
    planned_matrices = low_rank_matrices = 0
    """How many matrices a subclass's rule is to change in a step, and how many the last step did."""

    def __init__(
        self,
        named_parameters: list[tuple[str, nn.Parameter]],
        config: OwnConfig,
        seed: int,
        grad_clip: float = 0.0,
        exchange: Exchange | None = None,
        apart: Collection[str] = (),
    ):
        super().__init__([parameter for _, parameter in named_parameters], {"lr": config.lr})
        self.config, self.seed, self.grad_clip = config, seed, grad_clip
        self.exchange = exchange or Exchange(0, 1)
        self.updates = 0
        """Applied so far."""
        self.grad_norm = 0.0
        """L2 norm of the last step's gradient, before clipping."""
        self.limit = math.inf
        """Largest norm with which a step is applied; below 0 its gradient is dropped unseen."""
        self.applied = False
        """Whether the last step was; it is not when a gradient is not finite or its norm exceeds `limit`."""
        self.partly_applied = False
        """Whether a gradient of the last step was not finite, and some parts had moved before it came (per_layer)."""
        self.elements = [self._element(name, parameter) for name, parameter in named_parameters if name not in apart]
        self._squares: list[Tensor] = []
        self._broken = False
        self._hooks: list[RemovableHandle] = []
        parts = self._parts()
        owners = share_out([part.cost(config) for part in parts], self.exchange.size)
        for part, owner in zip(parts, owners, strict=True):
            part.owner = owner
        self._init_state()
        if config.update == "per_layer":
            assert self.exchange.size == 1
            assert not grad_clip
            for element in self.elements:
                work = partial(_call, self._step_element_now, element)
                self._hooks.append(element.parameter.register_post_accumulate_grad_hook(work))

    def begin(self, step: int, total_steps: int) -> None:
        """Before a step of the run, after `step` of its `total_steps`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Reduce, clip and apply what was accumulated since the last step.

        Nothing changes, but for this step's own attributes, when a gradient is not finite or its norm exceeds `limit`.
        """
        self.exchange.reset()
        self.applied, self.grad_norm = False, math.nan
        if self.config.update == "per_layer":
            self._finish()
        elif self.limit >= 0:
            self._reduce()
            self.grad_norm = self.exchange.total(self._own_square()).item() ** 0.5
            if self.grad_norm <= self.limit and math.isfinite(self.grad_norm):
                self._prepare()
                self.applied = math.isfinite(self.grad_norm)
            if self.applied:
                self._apply(min(1.0, self.grad_clip / (self.grad_norm + 1e-6)) if self.grad_clip else 1.0)
                self.updates += 1
        self.clear()

    def clear(self) -> None:
        """Let go of all gradients."""
        for element in self.elements:
            element.parameter.grad = None

    def unhook(self) -> None:
        """Take the hooks off the weights: they hold this optimizer, and autograd holds them where gc cannot see."""
        for hook in self._hooks:
            hook.remove()

    def tensors(self) -> Iterator[tuple[str, int, Tensor, Callable[[Tensor], None]]]:
        """(name, owner, tensor, put) of all state, in a fixed order; elsewhere than on the owner, one like the tensor.

        `put` takes a tensor of the same shape and dtype in its place. Names are <parameter>.<state>. What every rank
        keeps has owner -1.
        """
        for element in self.elements:
            like = element.state or element.fresh_state(self.config, torch.device("meta"))
            yield from entries(element.name, element.owner, like, element.state)

    def reset_moments(self, name: str, reset: Reset) -> None:
        """Let `reset` change both moments of a parameter that is not apart; on its owner alone."""
        (element,) = (element for element in self.elements if element.name == name)
        assert isinstance(element, AdamWPart), f"{name} has no moments of AdamW's"
        if element.owner == self.exchange.rank:
            element.reset_moments(reset)

    def full_gradient_bytes(self) -> int:
        """Bytes of all gradients, as they are made."""
        return sum(element.parameter.nbytes for element in self.elements)

    def figures(self) -> dict[str, float]:
        """What is logged of a step, by TensorBoard tag."""
        return {}

    def _element(self, name: str, parameter: nn.Parameter) -> Element:
        """How a parameter is stepped that is no subclass's own affair."""
        return AdamWPart(name, parameter)

    def _parts(self) -> Sequence[Part]:
        return self.elements

    def _init_state(self) -> None:
        for element in self.elements:
            if element.owner == self.exchange.rank:
                element.state = element.fresh_state(self.config, element.parameter.device)

    def _reduce(self) -> None:
        """Every gradient becomes the mean over ranks, on its owner."""
        self._reduce_elements(count=True)

    def _reduce_elements(self, count: bool) -> None:
        self.exchange.sum_to_owners(((e.owner, e.gradient) for e in self.elements), count=count)

    def _prepare(self) -> None:
        """Change what the step needs changed before it, now that it is to be applied; may change `grad_norm`."""

    def _own_square(self) -> Tensor:
        """The squared norm of the gradients that this rank owns."""
        norms = self._own_norms()
        return torch.stack(norms).square().sum() if norms else self._zero()

    def _own_norms(self) -> list[Tensor]:
        return norms_of([element.gradient for element in self.elements if element.owner == self.exchange.rank])

    def _apply(self, clip: float) -> None:
        """Change every parameter by its gradient times `clip`."""
        lr = self.param_groups[0]["lr"]
        for element in self.elements:
            if element.owner == self.exchange.rank:
                gradient = self._turned(element.parameter, scaled(element.gradient, clip))
                element.step(self.config, gradient, self.updates + 1, lr, self._key(element))
        self.exchange.send((element.owner, element.parameter.data) for element in self.elements)

    def _turned(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What a step is made of: `gradient`, or with `orthograd` what is left of it."""
        return orthogonal(weight, gradient) if self.config.orthograd else gradient

    @torch.no_grad()
    def _step_element_now(self, element: Element) -> None:
        """per_layer: the whole step of one parameter, inside of the backward pass."""
        if (square := self._sound(element.gradient)) is not None:
            self._squares.append(square)
            lr, gradient = self.param_groups[0]["lr"], self._turned(element.parameter, element.gradient)
            element.step(self.config, gradient, self.updates + 1, lr, self._key(element))
        element.parameter.grad = None

    def _sound(self, gradient: Tensor) -> Tensor | None:
        """The squared norm of `gradient`; None from the first one on that is not finite, until the step ends.

        A backward pass cannot be taken back once other weights have moved, but it can leave the rest as it is. The host
        waits for the device to say so, once for each parameter.
        """
        if self._broken:
            return None
        square = torch.linalg.vector_norm(gradient, dtype=torch.float32).square()  # isfinite(...) would write a matrix
        self._broken = not math.isfinite(square.item())
        return None if self._broken else square

    def _finish(self) -> None:
        """per_layer: count what the backward pass has done; there was none where the step is dropped."""
        moved = bool(self._squares)
        self.applied, self.partly_applied = moved and not self._broken, moved and self._broken
        if self._broken:
            self.grad_norm = math.inf
        elif moved:
            self.grad_norm = torch.stack(self._squares).sum().sqrt().item()
        self._squares.clear()
        self._broken = False
        self.updates += moved

    def _key(self, part: Part) -> int | None:
        if self.config.weights not in ("bf16_stochastic", "int8") or not part.rounds:
            return None
        return derive_seed(self.seed, "rounding", part.name, self.updates) & 0xFFFFFFFF

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.param_groups[0]["params"][0].device)


def norms_of(gradients: list[Tensor]) -> list[Tensor]:
    """L2 norms in fp32."""
    return list(torch._foreach_norm(gradients, dtype=torch.float32)) if gradients else []


def scaled(gradient: Tensor, factor: float) -> Tensor:
    """`gradient` itself, or times `factor` in fp32: in place where it is fp32."""
    return gradient if factor == 1 else gradient.float().mul_(factor)


def entries(
    name: str, owner: int, like: State, state: State
) -> Iterator[tuple[str, int, Tensor, Callable[[Tensor], None]]]:
    """What `OwnOptimizer.tensors` yields, of one state."""
    for key, tensor in like.items():
        yield f"{name}.{key}", owner, tensor, partial(state.__setitem__, key)


def _call(work: Callable[[Any], None], part: Any, parameter: Tensor) -> None:
    work(part)
