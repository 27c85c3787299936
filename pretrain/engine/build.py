"""The engine that a configuration asks for."""

from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.engine.base import Engine
from pretrain.engine.own import OwnEngine
from pretrain.engine.zero import ZeroEngine
from pretrain.machine.distributed import World
from pretrain.optim import build_optimizer
from pretrain.optim.exchange import Exchange
from pretrain.optim.own_optimizer import OwnOptimizer


def build_engine(model: Transformer, config: Config, world: World, grad_accum_steps: int) -> Engine:
    """DeepSpeed around `model` and its optimizer; `config.train.dtype` must be resolved."""
    seed, clip = config.run.seed, config.train.grad_clip
    exchange = Exchange(world.rank, world.size, wire=next(model.parameters()).dtype)
    optimizer = build_optimizer(config.optimizer, model, seed=seed, grad_clip=clip, exchange=exchange)
    if isinstance(optimizer, OwnOptimizer):
        return OwnEngine(model, optimizer, config, world, grad_accum_steps)
    return ZeroEngine(model, optimizer, config, world, grad_accum_steps)
