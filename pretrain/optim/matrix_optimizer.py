"""The GaLore family as one optimizer: projector x moments x rule x weights, whole matrices at a time.

One process for now; the parts that ranks share are in exchange.py.
"""

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from model.seeding import derive_seed, generator
from pretrain.optim.element import element_step, init_element
from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.projector.base import initial_basis
from pretrain.optim.refresh import is_due
from pretrain.optim.rules import RULES
from pretrain.optim.rules.base import State, Step


class Target:
    """A matrix with its parameter, its basis and what is kept of it."""

    def __init__(self, matrix: Matrix, parameter: nn.Parameter, index: int):
        self.matrix, self.parameter, self.index = matrix, parameter, index
        self.P: Tensor | None = None
        self.state: State = {}
        self.shared: State = {}
        self.projected: Tensor | None = None
        """R summed over the micro-steps so far."""


class MatrixOptimizer(torch.optim.Optimizer):
    """Steps the matrices of `targets` (by parameter name) with config's rule, everything else with AdamW.

    `products` is the dtype of products of whole matrices. After `step`, `grad_norm` is the norm of what was clipped:
    projected gradients for `projected` rules, with those of all other parameters.
    """

    def __init__(
        self,
        named_parameters: list[tuple[str, nn.Parameter]],
        targets: dict[str, Matrix],
        config: MatrixConfig,
        seed: int,
        grad_clip: float = 0.0,
        products: torch.dtype = torch.float32,
    ):
        super().__init__([parameter for _, parameter in named_parameters], {"lr": config.lr})
        self.config, self.seed, self.grad_clip, self.products = config, seed, grad_clip, products
        self.rule = RULES[config.rule](config)
        self.projector = PROJECTORS[config.projector]()
        self.updates = 0
        """Applied so far."""
        self.grad_norm = 0.0
        self.kept_bases = 0
        """Refreshes that a zero or non-finite gradient prevented."""
        parameters = dict(named_parameters)
        self.targets = [Target(matrix, parameters[name], i) for i, (name, matrix) in enumerate(targets.items())]
        self.elements = {name: p for name, p in named_parameters if name not in targets}
        self.element_state = {name: init_element(config, p) for name, p in self.elements.items()}
        for target in self.targets:
            device = target.parameter.device
            target.state = self.rule.init_state(target.matrix, device)
            target.shared = self.rule.init_shared(target.matrix, device)
            if self.rule.uses_basis:
                target.P = initial_basis(target.matrix, generator(seed, "basis", target.matrix.name), device)
            if self.rule.needs == "projected":
                target.parameter.register_post_accumulate_grad_hook(lambda _, target=target: self._project(target))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Reduce, clip and apply everything accumulated since the last step; nothing when a gradient is not finite."""
        lr = self.param_groups[0]["lr"]
        gradients = {target.matrix.name: self._gradient(target) for target in self.targets}
        elements = {name: p.grad.float() for name, p in self.elements.items() if p.grad is not None}
        everything = [*gradients.values(), *elements.values()]
        norm = torch.nn.utils.get_total_norm(everything)
        self.grad_norm = norm.item()
        if torch.isfinite(norm):
            clip = min(1.0, self.grad_clip / (self.grad_norm + 1e-6)) if self.grad_clip else 1.0
            for target in self.targets:
                self._step_target(target, gradients[target.matrix.name].mul_(clip), lr)
            for name, gradient in elements.items():
                decay = 0.0 if name.endswith("norm.weight") else self.config.weight_decay
                rate = lr * (self.config.factor_lr_ratio if name.endswith(".B") else 1.0)
                element_step(
                    self.config, self.elements[name], gradient.mul_(clip), self.element_state[name], self.updates + 1,
                    rate, decay, self._key(name),
                )  # fmt: skip
            self.updates += 1
        for target in self.targets:
            target.projected = target.parameter.grad = None

    def _project(self, target: Target) -> None:
        """After a backward pass: keep the projected gradient alone, unless the whole is needed for a new basis."""
        if self._due(target):
            return
        gradient = target.parameter.grad
        assert gradient is not None and target.P is not None
        R = self._project_with(target.P, target.matrix.left_form(gradient))
        target.projected = R if target.projected is None else target.projected.add_(R)
        target.parameter.grad = None

    def _gradient(self, target: Target) -> Tensor:
        """R or G in left form, fp32, of the whole step; with a new basis first where one is due."""
        if target.projected is not None:
            return target.projected
        assert target.parameter.grad is not None, f"{target.matrix.name} received no gradient"
        G = target.matrix.left_form(target.parameter.grad).float()
        if self.rule.uses_basis and self._due(target):
            self._refresh(target, G)
        if self.rule.needs == "full":
            return G
        assert target.P is not None
        return self._project_with(target.P, G)

    def _refresh(self, target: Target, G: Tensor) -> None:
        matrix = target.matrix
        random = generator(self.seed, "refresh", f"{matrix.name} {self.updates}")
        new = self.projector.basis(matrix, G, target.P, random)
        if new is None:
            self.kept_bases += 1
            return
        assert target.P is not None
        self.rule.change_basis(matrix, target.state, target.P, new)
        target.P = new

    def _step_target(self, target: Target, gradient: Tensor, lr: float) -> None:
        matrix = target.matrix
        step = Step(self.updates + 1, lr, self._due(target), self.products, self._key(matrix.name))
        message = self.rule.direct(matrix, target.state, target.P, gradient, step)
        seen = gradient if self.rule.gradient_everywhere else None
        self.rule.apply(matrix, target.parameter, target.shared, target.P, seen, message, step)

    def _project_with(self, P: Tensor, G: Tensor) -> Tensor:
        return (P.to(self.products).t() @ G.to(self.products)).float()

    def _due(self, target: Target) -> bool:
        return is_due(self.config, target.index, len(self.targets), self.updates)

    def _key(self, name: str) -> int | None:
        if self.config.weights != "bf16_stochastic":
            return None
        return zlib.crc32(str(derive_seed(self.seed, "rounding", f"{name} {self.updates}")).encode())
