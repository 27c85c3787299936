"""The matrix optimizers: their state from their own `init_state`, their hooks, and what their step takes on the way."""

from model.linear.int8 import Int8Linear
from model.transformer import Transformer
from pretrain.memory_plan.gradients import Gradients
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.projector import basis_bytes, new_basis
from pretrain.memory_plan.rule import RULE_MEMORY, project, read_basis, store_codes
from pretrain.memory_plan.setting import Setting
from pretrain.memory_plan.sharded import META, Owned, ShardedGradients, ShardedMemory, state_bytes
from pretrain.optim.config import MatrixConfig
from pretrain.optim.exchange import BUCKET_BYTES
from pretrain.optim.refresh import FIRST_STEPS, is_due
from pretrain.optim.rules import PRESETS
from pretrain.optim.target import Target
from pretrain.optim.targets import find_targets
from pretrain.optim.weight import FloatWeight, Int8Weight, Weight


class MatrixMemory(ShardedMemory):
    """Of matrices by their rule, and of everything else by AdamW."""

    config: MatrixConfig

    def __init__(self, config: MatrixConfig, model: Transformer, setting: Setting, world_size: int, clips: bool):
        self.rule = PRESETS[config.name](config)
        self.memory = RULE_MEMORY[type(self.rule).__module__.rpartition(".")[2]]
        matrices = find_targets(model, config)
        weights: dict[str, Weight] = {name: FloatWeight(p) for name, p in model.named_parameters()}
        weights |= {f"{n}.weight": Int8Weight(m) for n, m in model.named_modules() if isinstance(m, Int8Linear)}
        self.targets = [Target(name, weights[name], matrix, i) for i, (name, matrix) in enumerate(matrices.items())]
        super().__init__(config, model, setting, world_size, clips, apart=self.targets)
        self.weights += sum(m.quantized.nbytes for m in model.modules() if isinstance(m, Int8Linear))

    @property
    def sums_on_host(self) -> bool:
        """Whether projected gradients leave the device; on a CPU they are a part of the process like all else."""
        return self.config.accumulators == "host" and self.setting.cuda

    @property
    def host(self) -> int:
        if not self.sums_on_host:
            return 0
        return sum(self.setting.pinned(4 * t.matrix.rank * t.matrix.n) for t in self.targets)

    def owned(self, rank: int) -> Owned:
        kept = self.targets if self.rule.uses_basis else []
        bases = sum(basis_bytes(t.matrix, self.config.projection) for t in kept)
        shared = sum(state_bytes(self.rule.init_shared(t.matrix, META)) for t in self.targets)
        states = [self.rule.init_state(t.matrix, META) for t in self.targets if t.owner == rank]
        own = sum(state["P"].nbytes for state in states if "P" in state)
        moments = super().owned(rank).moments + sum(state_bytes(state) for state in states) - own + shared
        return Owned(moments, own + bases)

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
            self._reduce(ledger, gradients)
            self._apply(ledger, gradients)
            self.apply_elements(ledger)
        ledger.free("accumulators", ledger.alive("accumulators"))
        gradients.clear()

    def _reduce(self, ledger: Ledger, gradients: Gradients) -> None:
        whole = [t for t in self.targets if gradients.holds(t.name)]
        if self.world_size > 1:
            largest = max([e.parameter.numel() for e in self.elements] + [numel(t) for t in whole])
            ledger.touch(self.message(largest), "reduction")
        due = {t.name for t in self.due(self.busiest_step())} if self.rule.uses_basis else set()
        for target in whole:
            if target.name in due:
                self.refresh(target, ledger)
        for target in whole if self.rule.needs == "projected" else ():
            self.project(target, gradients, ledger)
            self.keep(target, ledger)
            gradients.drop(target.name)

    def refresh(self, target: Target, ledger: Ledger) -> None:
        """A new basis, beside the old one as it is used."""
        ledger.touch(read_basis(self.config, target.matrix) + new_basis(self.config.projector, target.matrix))

    def project(self, target: Target, gradients: Gradients, ledger: Ledger) -> None:
        """The projected gradient, as a temporary."""
        size = project(target.matrix, self.setting, gradients.wide(target.name))
        ledger.touch(read_basis(self.config, target.matrix) + size)

    def keep(self, target: Target, ledger: Ledger) -> None:
        """R beside what made it; on the device it stays."""
        R = 4 * target.matrix.rank * target.matrix.n
        if self.sums_on_host:
            ledger.touch(R)
        else:
            ledger.take("accumulators", R)

    def _apply(self, ledger: Ledger, gradients: Gradients) -> None:
        """Of as many matrices at once as have messages that fill a bucket for each rank."""
        group: list[Target] = []
        for target in self.targets:
            group.append(target)
            messages = sum(self._message(t) for t in group)
            if self.world_size == 1 or messages >= BUCKET_BYTES * self.world_size or target is self.targets[-1]:
                self._apply_group(group, ledger, gradients)
                group = []

    def _apply_group(self, targets: list[Target], ledger: Ledger, gradients: Gradients) -> None:
        copies = sum(self._gradient_copy(target, gradients) for target in targets)
        messages = sum(self._message(target) for target in targets)
        for target in targets:
            ledger.touch(copies + messages - self._message(target) + self._direct(target))
            ledger.touch(copies + messages + self._change(target))

    def _gradient_copy(self, target: Target, gradients: Gradients) -> int:
        """Its gradient on the device in fp32, where it is not so already."""
        if self.rule.needs == "full":
            return 0 if gradients.wide(target.name) else 4 * numel(target)
        return 4 * target.matrix.rank * target.matrix.n if self.sums_on_host else 0

    def _direct(self, target: Target) -> int:
        """While its message is made."""
        return self._basis(target) + self.memory.direct(self.config, target.matrix, self.setting)

    def _message(self, target: Target) -> int:
        return self.memory.message(self.config, target.matrix, self.setting)

    def _change(self, target: Target) -> int:
        """While its weight is changed; codes as numbers, and then as codes again."""
        size = self.memory.apply(self.config, target.matrix, self.setting)
        if isinstance(target.weight, Int8Weight):
            size = 4 * numel(target) + max(size, store_codes(target.matrix, self.setting))
        return self._basis(target) + size

    def _basis(self, target: Target) -> int:
        return read_basis(self.config, target.matrix) if self.rule.uses_basis else 0

    def step_now(self, name: str, numel: int, gradients: Gradients, ledger: Ledger) -> None:
        target = next((target for target in self.targets if target.name == name), None)
        if target is None:
            super().step_now(name, numel, gradients, ledger)
            return
        if self.rule.uses_basis:
            self.refresh(target, ledger)
        kept = self._gradient_copy(target, gradients)
        if self.rule.needs == "projected":
            self.project(target, gradients, ledger)
            kept = 4 * target.matrix.rank * target.matrix.n
            ledger.touch(2 * kept)  # it and its squares
        with ledger.during(kept):
            ledger.touch(self._direct(target))
            ledger.touch(self._message(target) + self._change(target))


def numel(target: Target) -> int:
    return target.matrix.m * target.matrix.n


class MatrixGradients(ShardedGradients):
    """Of a `projected` rule the projected gradient stays; under per_layer nothing."""

    optimizer: MatrixMemory

    def __init__(self, ledger: Ledger, optimizer: MatrixMemory):
        super().__init__(ledger, optimizer)
        self.targets = {target.name: target for target in optimizer.targets}
        self.due = {target.name for target in optimizer.due(optimizer.busiest_step())}
        self._projected: set[str] = set()

    def receive(self, name: str, numel: int) -> None:
        """Gradients of codes are summed in fp32."""
        target = self.targets.get(name)
        if target is None or not isinstance(target.weight, Int8Weight) or not self.holds(name):
            super().receive(name, numel)
            return
        with self.ledger.during(numel * self.param, "gradients"):
            self.widen(name, numel)

    def arrived(self, name: str, numel: int) -> None:
        optimizer, target = self.optimizer, self.targets.get(name)
        summed = target is not None and optimizer.rule.needs == "projected" and name not in self.due
        if optimizer.config.update == "per_layer" or not summed:
            super().arrived(name, numel)
            return
        assert target is not None
        optimizer.project(target, self, self.ledger)
        R = 4 * target.matrix.rank * target.matrix.n
        if name not in self._projected:
            optimizer.keep(target, self.ledger)
            self._projected.add(name)
        else:  # the sum visits the device
            self.ledger.touch(2 * R if optimizer.sums_on_host else R)
        self.drop(name)
