"""The GaLore family as one optimizer: projector x moments x rule x weights, whole matrices shared out over ranks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.linear.int8 import Int8Linear
from model.seeding import derive_seed
from pretrain.optim.checks import require_coherent
from pretrain.optim.exchange import Exchange, share_out
from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.refresher import Refresher
from pretrain.optim.rules import RULES
from pretrain.optim.rules.adam import project
from pretrain.optim.rules.base import State, Step
from pretrain.optim.target import Element, Target
from pretrain.optim.weight import FloatWeight, Int8Weight, Weight


class MatrixOptimizer(torch.optim.Optimizer):
    """Steps the matrices of `targets` (by parameter name) with config's rule, everything else with AdamW.

    A target is one of `named_parameters`, or the codes of one of `int8_linears` (by the name that its weight would have
    as a parameter).
    Each parameter has one owner among the ranks of `exchange`, which keeps its moments. Gradients come as means over
    micro-steps; `step` takes their mean over ranks. For a `projected` rule a hook projects each gradient as soon as
    the backward pass has made it and frees it, so that whole gradients do not coexist, and ranks reduce projected ones.
    `products` is the dtype of products of whole matrices. torch.optim.Optimizer is the interface DeepSpeed expects;
    state is kept by parameter name, in `tensors`.
    """

    def __init__(
        self,
        named_parameters: list[tuple[str, nn.Parameter]],
        targets: dict[str, Matrix],
        config: MatrixConfig,
        seed: int,
        grad_clip: float = 0.0,
        products: torch.dtype = torch.float32,
        exchange: Exchange | None = None,
        int8_linears: Mapping[str, Int8Linear] | None = None,
    ):
        super().__init__([parameter for _, parameter in named_parameters], {"lr": config.lr})
        require_coherent(config)
        self.config, self.seed, self.grad_clip, self.products = config, seed, grad_clip, products
        self.exchange = exchange or Exchange(0, 1)
        self.rule = RULES[config.rule](config)
        self.updates = 0
        """Applied so far."""
        self.grad_norm = 0.0
        """Of the last step, before clipping: of the projected gradients for a `projected` rule, with all others'."""
        self.applied = False
        """Whether the last step was; it is not when a gradient is not finite."""
        self.kept_bases = 0
        """Refreshes so far that a zero or non-finite gradient prevented."""
        self.refreshes = 0
        """Bases so far that were replaced."""
        self.low_rank_matrices = 0
        """Matrices that the last step changed by the rule."""
        self.most_full_gradients = 0
        """Largest number of whole gradients of targets that were alive at once during the last step."""
        self._most_full_gradients = self._stepped = 0
        self._squares: list[Tensor] = []
        weights: dict[str, Weight] = {
            name: FloatWeight(parameter) for name, parameter in named_parameters if name in targets
        }
        weights |= {name: Int8Weight(linear) for name, linear in (int8_linears or {}).items()}
        self.targets = [Target(name, weights[name], matrix, i) for i, (name, matrix) in enumerate(targets.items())]
        self.elements = [Element(name, p) for name, p in named_parameters if name not in targets]
        self._share_out()
        self._init_state()
        self.refresher = Refresher(config, self.rule, self.targets, seed, self.exchange)
        self._holding: set[str] = set()
        self._hooks: list[RemovableHandle] = []
        if config.update == "per_layer":
            assert self.exchange.size == 1
            assert not grad_clip
            self._hook_targets(self._step_target_now)
            for element in self.elements:
                work = partial(_call, self._step_element_now, element)
                self._hooks.append(element.parameter.register_post_accumulate_grad_hook(work))
        elif self.rule.needs == "projected":
            self._hook_targets(self._project)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Reduce, clip and apply what was accumulated since the last step.

        When a gradient is not finite nothing is applied; a matrix that was due may still have its new basis.
        """
        self.exchange.reset()
        if self.config.update == "per_layer":
            self._finish()
        else:
            self._reduce_and_apply()
        self.low_rank_matrices, self._stepped = self._stepped, 0
        self.most_full_gradients, self._most_full_gradients = self._most_full_gradients, 0
        self.clear()

    def _reduce_and_apply(self) -> None:
        gradients = self._reduce()
        owned = [gradients[part.name] for part in self._parts() if part.owner == self.exchange.rank]
        norm = torch.stack(torch._foreach_norm(owned)).square().sum() if owned else self._zero()
        counts = norm.new_tensor((self.refresher.kept, self.refresher.refreshes))
        square, kept, refreshes = self.exchange.total(torch.cat((norm[None], counts))).tolist()
        self.grad_norm = square**0.5
        self.kept_bases += int(kept)
        self.refreshes += int(refreshes)
        self.applied = self.grad_norm < float("inf")
        if self.applied:
            clip = min(1.0, self.grad_clip / (self.grad_norm + 1e-6)) if self.grad_clip else 1.0
            if clip < 1:
                torch._foreach_mul_(list(gradients.values()), clip)
            self._apply(gradients)
            self.updates += 1
        self.refresher.end_step(self.applied)

    def clear(self) -> None:
        """Let go of all gradients."""
        self._holding.clear()
        for element in self.elements:
            element.parameter.grad = None
        for target in self.targets:
            target.projected = target.weight.grad = None

    def tensors(self) -> Iterator[tuple[str, int, Tensor, Callable[[Tensor], None]]]:
        """(name, owner, tensor, put) of all state, in a fixed order; elsewhere than on the owner, one like the tensor.

        `put` takes a tensor of the same shape and dtype in its place. Names are <parameter>.<state>. What every rank
        keeps has owner -1.
        """
        for target in self.targets:
            if target.basis is not None:
                yield from _entries(target.name, -1, target.basis.tensors, target.basis.tensors)
            if target.gap is not None:
                yield f"{target.name}.refresh", -1, target.gap.tensor(), target.gap.load
            yield from _entries(target.name, -1, target.shared, target.shared)
            like = target.state or self.rule.init_state(target.matrix, torch.device("meta"))
            yield from _entries(target.name, target.owner, like, target.state)
        for element in self.elements:
            like = element.state or element.fresh_state(self.config, torch.device("meta"))
            yield from _entries(element.name, element.owner, like, element.state)

    def _parts(self) -> list[Target | Element]:
        return [*self.targets, *self.elements]

    def _share_out(self) -> None:
        costs = [target.cost(self.config) for target in self.targets]
        costs += [float(element.parameter.numel()) for element in self.elements]
        for part, owner in zip(self._parts(), share_out(costs, self.exchange.size), strict=True):
            part.owner = owner

    def _init_state(self) -> None:
        for target in self.targets:
            matrix, device = target.matrix, target.weight.device
            target.shared = self.rule.init_shared(matrix, device)
            if target.owner == self.exchange.rank:
                target.state = self.rule.init_state(matrix, device)
        for element in self.elements:
            if element.owner == self.exchange.rank:
                element.state = element.fresh_state(self.config, element.parameter.device)

    def _hook_targets(self, work: Callable[[Target], None]) -> None:
        for target in self.targets:
            target.weight.on_gradient(partial(work, target))

    def unhook(self) -> None:
        """Take the hooks off the weights: they hold this optimizer, and autograd holds them where gc cannot see."""
        for target in self.targets:
            target.weight.unhook()
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _project(self, target: Target) -> None:
        """After a backward pass: keep the projected gradient alone, unless the whole is needed for a new basis.

        A linear that sums its gradient over micro-steps hands it to its factors with the last one: nothing before.
        """
        if target.weight.grad is None:
            return
        self._most_full_gradients = max(self._most_full_gradients, len(self._holding | {target.name}))
        if self._due(target):
            self._holding.add(target.name)
            return
        R = self._projection(target, self._whole(target))
        target.projected = R if target.projected is None else target.projected.add_(R)
        target.weight.grad = None

    def _reduce(self) -> dict[str, Tensor]:
        """The step's gradients by name, fp32, in left form: R or G of targets; the mean over ranks on the owner.

        Matrices that are due get their new basis first.
        """
        gradients = {e.name: self._whole(e) for e in self.elements}
        self.exchange.sum_to_owners(((e.owner, gradients[e.name]) for e in self.elements), count=False)
        wholes = {t.name: self._whole(t) for t in self.targets if t.projected is None}
        owned = [(t.owner, wholes[t.name]) for t in self.targets if t.name in wholes]
        if self.rule.gradient_everywhere:
            self.exchange.sum_everywhere(G for _, G in owned)
        else:
            self.exchange.sum_to_owners(owned)
        self.refresher.refresh(wholes, self.updates)
        if self.rule.needs == "full":
            return gradients | wholes
        for target in self.targets:
            projected = target.projected
            gradients[target.name] = self._projection(target, wholes[target.name]) if projected is None else projected
        kept = [(t.owner, t.projected) for t in self.targets if t.projected is not None]
        self.exchange.sum_to_owners(kept)
        return gradients

    def _apply(self, gradients: dict[str, Tensor]) -> None:
        lr, rank = self.param_groups[0]["lr"], self.exchange.rank
        messages: dict[str, State] = {}
        for target in self.targets:
            if target.owner == rank:
                messages[target.name] = self._message(target, gradients[target.name], lr)
            else:
                messages[target.name] = self._empty_message(target)
        self.exchange.send((t.owner, part) for t in self.targets for _, part in sorted(messages[t.name].items()))
        for target in self.targets:
            seen = gradients[target.name] if self.rule.gradient_everywhere else None
            self._change(target, seen, messages.pop(target.name), lr)
        for element in self.elements:
            if element.owner == rank:
                element.step(self.config, gradients[element.name], self.updates + 1, lr, self._key(element))
        self.exchange.send((element.owner, element.parameter.data) for element in self.elements)

    def _message(self, target: Target, gradient: Tensor, lr: float) -> State:
        step = self._step(target, lr)
        message = self.rule.direct(target.matrix, target.state, target.P, gradient, step)
        return {name: part.to(self._wire(name)).contiguous() for name, part in message.items()}

    def _empty_message(self, target: Target) -> State:
        device = target.weight.device
        shapes = self.rule.message_shapes(target.matrix)
        return {name: torch.empty(shape, dtype=self._wire(name), device=device) for name, shape in shapes.items()}

    def _wire(self, name: str) -> torch.dtype:
        """R and N travel in the precision in which they are multiplied; all else in fp32."""
        return self.products if name in ("R", "N") else torch.float32

    def _change(self, target: Target, gradient: Tensor | None, message: State, lr: float) -> None:
        step, P = self._step(target, lr), target.P

        def rule(weight: Tensor, key: int | None) -> None:
            self.rule.apply(target.matrix, weight, target.shared, P, gradient, message, replace(step, key=key))

        target.weight.change(step.key, rule)
        self._stepped += 1

    def _step(self, target: Target, lr: float) -> Step:
        key = self._key(target)
        return Step(self.updates + 1, lr, self._due(target), self.products, key, target.weight.read)

    @torch.no_grad()
    def _step_target_now(self, target: Target) -> None:
        """per_layer: the whole step of one matrix, inside of the backward pass."""
        lr, G = self.param_groups[0]["lr"], self._finite(self._whole(target))
        if self.rule.uses_basis and self._due(target):
            overlap = self.refresher.new_basis(target, G, self.updates)
            self.refresher.reschedule(target, float(overlap))
        gradient = self._projection(target, G) if self.rule.needs == "projected" else G
        self._squares.append(gradient.square().sum())
        self._change(target, G if self.rule.gradient_everywhere else None, self._message(target, gradient, lr), lr)
        target.weight.grad = None
        self._most_full_gradients = 1

    @torch.no_grad()
    def _step_element_now(self, element: Element) -> None:
        gradient = self._finite(self._whole(element))
        self._squares.append(gradient.square().sum())
        element.step(self.config, gradient, self.updates + 1, self.param_groups[0]["lr"], self._key(element))
        element.parameter.grad = None

    def _finite(self, gradient: Tensor) -> Tensor:
        """`gradient`, or zeros in its place: a backward pass cannot be taken back once other weights have moved.

        The norm of the step says that it happened.
        """
        finite = torch.isfinite(gradient.norm())  # one reduction, where isfinite(...).all() would write a matrix first
        self._squares.append(torch.where(finite, 0.0, torch.inf))
        return torch.where(finite, gradient, 0.0)

    def _finish(self) -> None:
        self.kept_bases += self.refresher.kept
        self.refreshes += self.refresher.refreshes
        self.grad_norm = torch.stack(self._squares).sum().sqrt().item()
        self.applied = self.grad_norm < float("inf")
        self._squares.clear()
        self.updates += 1
        self.refresher.end_step(applied=True)

    def _whole(self, part: Target | Element) -> Tensor:
        """The gradient in fp32, a target's in left form and contiguous memory of its own shape."""
        gradient = part.weight.grad if isinstance(part, Target) else part.parameter.grad
        assert gradient is not None, f"{part.name} received no gradient"
        return part.matrix.left_form(gradient.float()) if isinstance(part, Target) else gradient.float()

    def _projection(self, target: Target, G: Tensor) -> Tensor:
        P = target.P
        assert P is not None
        return project(P, G, self.products)

    def _due(self, target: Target) -> bool:
        return self.refresher.due(target, self.updates)

    def _key(self, part: Target | Element) -> int | None:
        if self.config.weights not in ("bf16_stochastic", "int8") or not part.rounds:
            return None
        return derive_seed(self.seed, "rounding", part.name, self.updates) & 0xFFFFFFFF

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.param_groups[0]["params"][0].device)


def _call(work: Callable[[Any], None], part: Any, parameter: Tensor) -> None:
    work(part)


def _entries(
    name: str, owner: int, like: State, state: State
) -> Iterator[tuple[str, int, Tensor, Callable[[Tensor], None]]]:
    for key, tensor in like.items():
        yield f"{name}.{key}", owner, tensor, partial(state.__setitem__, key)
