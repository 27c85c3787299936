"""The engine that a configuration asks for."""

from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.distributed import World
from pretrain.engine.engine import Engine
from pretrain.engine.matrix import MatrixEngine
from pretrain.engine.sharded import ShardedEngine
from pretrain.optim import build_optimizer
from pretrain.optim.exchange import Exchange
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.sharded_optimizer import ShardedOptimizer


def build_engine(model: Transformer, config: Config, world: World, grad_accum_steps: int) -> Engine:
    """DeepSpeed around `model` and its optimizer; `config.train.dtype` must be resolved."""
    seed, clip = config.run.seed, config.train.grad_clip
    exchange = Exchange(world.rank, world.size, wire=next(model.parameters()).dtype)
    optimizer = build_optimizer(config.optimizer, model, seed=seed, grad_clip=clip, exchange=exchange)
    if isinstance(optimizer, MatrixOptimizer):
        return MatrixEngine(model, optimizer, config, world, grad_accum_steps)
    if isinstance(optimizer, ShardedOptimizer):
        return ShardedEngine(model, optimizer, config, world, grad_accum_steps)
    return Engine(model, optimizer, config, world, grad_accum_steps, bf16=config.train.dtype == "bf16")
