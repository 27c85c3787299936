"""The matrix optimizers: their state from their own `init_state`, their hooks, and what their step takes on the way."""

from dataclasses import dataclass

import torch

from model.linear.int8 import Int8Linear
from model.transformer import Transformer
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.projector import basis_bytes, new_basis
from pretrain.memory_plan.rule import RULE_MEMORY, element_step, project
from pretrain.memory_plan.setting import Setting
from pretrain.memory_plan.update import Update
from pretrain.optim.element import Element
from pretrain.optim.exchange import BUCKET_BYTES, share_out
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.refresh import FIRST_STEPS, is_due
from pretrain.optim.rules import RULES
from pretrain.optim.rules.base import State
from pretrain.optim.target import Target
from pretrain.optim.targets import find_targets
from pretrain.optim.weight import FloatWeight, Int8Weight, Weight

META = torch.device("meta")


@dataclass(frozen=True)
class Owned:
    """Bytes of state on the rank that has most."""

    moments: int
    projections: int


class MatrixMemory(Update):
    """Over a model on the meta device."""

    def __init__(self, config: MatrixConfig, model: Transformer, setting: Setting, world_size: int):
        self.config, self.setting, self.world_size = config, setting, world_size
        self.rule = RULES[config.rule](config)
        self.memory = RULE_MEMORY[config.rule]
        parameters, matrices = dict(model.named_parameters()), find_targets(model, config)
        weights: dict[str, Weight] = {name: FloatWeight(p) for name, p in parameters.items()}
        weights |= {f"{n}.weight": Int8Weight(m) for n, m in model.named_modules() if isinstance(m, Int8Linear)}
        self.targets = [Target(name, weights[name], matrix, i) for i, (name, matrix) in enumerate(matrices.items())]
        self.elements = [Element(name, p) for name, p in parameters.items() if name not in matrices]
        parts: list[Target | Element] = [*self.targets, *self.elements]
        costs = [target.cost(config) for target in self.targets]
        costs += [float(element.parameter.numel()) for element in self.elements]
        for part, owner in zip(parts, share_out(costs, world_size), strict=True):
            part.owner = owner
        self.state = self._state()
        self.weights = sum(p.nbytes for p in parameters.values())

    @property
    def before(self) -> int:
        return self.weights + self.state.moments + self.state.projections

    def begin(self, ledger: Ledger) -> None:
        ledger.take("weights", self.weights)
        ledger.take("moments", self.state.moments)
        ledger.take("projections", self.state.projections)

    def _state(self) -> Owned:
        kept = self.targets if self.rule.uses_basis else []
        bases = sum(basis_bytes(t.matrix, self.config.projection) for t in kept)
        shared = sum(_bytes(self.rule.init_shared(t.matrix, META)) for t in self.targets)
        ranks = []
        for rank in range(self.world_size):
            states = [self.rule.init_state(t.matrix, META) for t in self.targets if t.owner == rank]
            states += [e.fresh_state(self.config, META) for e in self.elements if e.owner == rank]
            own = sum(state["P"].nbytes for state in states if "P" in state)
            ranks.append(Owned(sum(_bytes(state) for state in states) - own + shared, own + bases))
        return max(ranks, key=lambda owned: owned.moments + owned.projections)

    def busiest_step(self) -> int:
        """The number of updates so far at the step in whose backward pass most whole gradients stay for new bases."""
        if not self.rule.uses_basis:
            return 1
        last = FIRST_STEPS if self.config.refresh_stagger else 0
        return max(range(last + 1), key=lambda step: (sum(4 * numel(t) for t in self.due(step)), step > 0))

    def due(self, step: int) -> list[Target]:
        return [t for t in self.targets if is_due(self.config, t.index, len(self.targets), step)]

    def gradients(self, ledger: Ledger) -> "MatrixGradients":
        return MatrixGradients(ledger, self)

    def update(self, ledger: Ledger, gradients: Gradients) -> None:
        """`MatrixOptimizer.step`."""
        ledger.begin("update")
        if self.config.update == "step":
            narrow = self.setting.param < 4
            copies = 4 * sum(e.parameter.numel() for e in self.elements) if narrow else 0
            whole = [t for t in self.targets if gradients.holds(t.name)]
            copies += 4 * sum(numel(t) for t in whole) if narrow else 0
            with ledger.during(copies):
                self._reduce(ledger, whole)
                projected = whole if self.rule.needs == "projected" else []
                with ledger.during(sum(4 * t.matrix.rank * t.matrix.n for t in projected)):
                    self._apply(ledger)
        ledger.free("accumulators", ledger.alive("accumulators"))
        gradients.clear()

    def _reduce(self, ledger: Ledger, whole: list[Target]) -> None:
        if self.world_size > 1:  # tensors as the dtype that travels, and all of a message in one
            wire = self.setting.param
            largest = max([e.parameter.numel() for e in self.elements] + [numel(t) for t in whole])
            message = max(BUCKET_BYTES // 4, largest) * wire
            ledger.touch(message * (1 if wire == 4 else 2), "reduction")
        if self.rule.uses_basis:
            due = {t.name for t in self.due(self.busiest_step())}
            ledger.touch(max((new_basis(self.config.projector, t.matrix) for t in whole if t.name in due), default=0))
        if self.rule.needs == "projected":
            for target in whole:
                ledger.touch(project(target.matrix, self.setting))

    def _apply(self, ledger: Ledger) -> None:
        messages, worst_message, worst_change = 0, 0, 0
        for target in self.targets:
            kept = self.memory.message(self.config, target.matrix, self.setting)
            worst_message = max(worst_message, messages + self.memory.direct(self.config, target.matrix, self.setting))
            messages += kept
        for target in self.targets:
            worst_change = max(worst_change, messages + self.memory.apply(self.config, target.matrix, self.setting))
            messages -= self.memory.message(self.config, target.matrix, self.setting)
        ledger.touch(max(worst_message, worst_change))
        ledger.touch(
            max((element_step(self.config, e.parameter.numel(), self.setting) for e in self.elements), default=0)
        )


def numel(target: Target) -> int:
    return target.matrix.m * target.matrix.n


class MatrixGradients(Gradients):
    """What the hooks leave: of a `projected` rule the projected gradient, under per_layer nothing."""

    def __init__(self, ledger: Ledger, optimizer: MatrixMemory):
        super().__init__(ledger, optimizer.setting.param)
        self.optimizer = optimizer
        self.targets = {target.name: target for target in optimizer.targets}
        self.due = {target.name for target in optimizer.due(optimizer.busiest_step())}
        self._projected: set[str] = set()

    def arrived(self, name: str, numel: int) -> None:
        optimizer, target = self.optimizer, self.targets.get(name)
        copy = 4 * numel if self.param < 4 else 0
        if optimizer.config.update == "per_layer":
            self._step_now(target, numel, copy)
            self.drop(name)
        elif target is not None and optimizer.rule.needs == "projected" and name not in self.due:
            R = 4 * target.matrix.rank * target.matrix.n
            with self.ledger.during(copy):
                self.ledger.touch(project(target.matrix, optimizer.setting))
                if name in self._projected:
                    self.ledger.touch(R)
                else:
                    self.ledger.take("accumulators", R)
                    self._projected.add(name)
            self.drop(name)

    def _step_now(self, target: Target | None, numel: int, copy: int) -> None:
        """A gradient that is checked and squared, then the whole step of its parameter."""
        optimizer, ledger, config = self.optimizer, self.ledger, self.optimizer.config
        with ledger.during(copy + 4 * numel):
            if target is None:
                ledger.touch(max(4 * numel, element_step(config, numel, optimizer.setting)))
                return
            matrix, memory = target.matrix, optimizer.memory
            if optimizer.rule.uses_basis:
                ledger.touch(new_basis(config.projector, matrix))
            ledger.touch(memory.direct(config, matrix, optimizer.setting))
            with ledger.during(memory.message(config, matrix, optimizer.setting)):
                ledger.touch(memory.apply(config, matrix, optimizer.setting))


def _bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
