"""The engine of matrix optimizers, with what it reports of them."""

import math

from model.errors import RunFailed
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.distributed import World, shared
from pretrain.engine.engine import Update
from pretrain.engine.sharded import ShardedEngine
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.projector import is_late
from pretrain.optim.targets import find_targets


class MatrixEngine(ShardedEngine):
    """Watches that every planned matrix takes the low-rank path; bytes are those of the matrices' gradients."""

    optimizer: MatrixOptimizer

    def __init__(
        self, model: Transformer, optimizer: MatrixOptimizer, config: Config, world: World, grad_accum_steps: int
    ):
        super().__init__(model, optimizer, config, world, grad_accum_steps)
        self.config, self.total_steps = config.optimizer, config.schedule.total_steps
        self.planned_matrices = len(find_targets(model, config.optimizer))
        if optimizer.rule.needs == "projected":
            self.norm_name = "grad_norm_projected"

    def begin(self, lr: float, step: int = 0) -> None:
        super().begin(lr, step)
        self.optimizer.refresher.late = is_late(self.config, step, self.total_steps)

    def update(self) -> Update:
        update = super().update()
        if self.optimizer.applied and self.optimizer.low_rank_matrices != self.planned_matrices:
            raise shared(
                RunFailed(
                    f"{self.optimizer.low_rank_matrices} matrices took the low-rank path, {self.planned_matrices} were "
                    "planned: an error of this program, or a model changed behind its back"
                )
            )
        return update

    def low_rank_matrices(self) -> int:
        return self.planned_matrices

    def full_gradient_bytes(self) -> int:
        """What these would be if gradients were not projected."""
        sizes = [math.prod(target.matrix.shape) for target in self.optimizer.targets]
        return sum(sizes) * self.optimizer.exchange.wire.itemsize

    def figures(self) -> dict[str, float]:
        return {
            "train/refreshes": self.optimizer.refreshes,
            "train/kept_bases": self.optimizer.kept_bases,
            "comm/reduced_bytes": self.reduced_bytes(),
        }
