"""What there is before the first step: the model without data, the optimizer's state, and who of several has most."""

import torch
from torch import Tensor, nn

from model.build import shape_of_model
from model.linear.int8 import Int8Linear
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.loop.build import computed_in, eight_bit, stored_in
from pretrain.memory_plan.ledger import Ledger
from pretrain.memory_plan.offload import Offloaded
from pretrain.memory_plan.trace import META, tracing
from pretrain.memory_plan.zero import Sharded
from pretrain.optim import build_optimizer
from pretrain.optim.exchange import Exchange
from pretrain.optim.own_optimizer import OwnOptimizer


class Silent(Exchange):
    """One rank of several, of which only its own memory is of interest."""

    def _reduce(self, flat: Tensor, owner: int) -> None: ...

    def _sum(self, flat: Tensor) -> None: ...

    def _broadcast(self, flat: Tensor, owner: int) -> None: ...


def shape_of(config: Config) -> Transformer:
    """The model on meta, its parameters as the engine stores them."""
    train, int8 = config.train, config.optimizer.weights == "int8"
    every, offload = train.checkpoint_every_layers, train.offload_activations
    how = eight_bit(config, META)
    model = shape_of_model(config.model, config.linear, computed_in(config), every, int8, offload, how)
    return model.to(computed_in(config) if config.parallel.zero_stage > 0 else stored_in(config))


def with_layers(config: Config, n_layers: int) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"n_layers": n_layers})})


def layers_alike(config: Config) -> bool:
    """Whether each layer takes as much as any other; a table of ranks may name some of them."""
    return not any(getattr(table, "ranks", ()) for table in (config.linear, config.optimizer))


def sharded_state(config: Config, model: Transformer, world_size: int, cuda: bool) -> Sharded:
    """What DeepSpeed keeps of `model` at the configuration's ZeRO stage, 1 to 3."""
    numels, stored = [p.numel() for p in model.parameters()], next(model.parameters()).element_size()
    stage, train = config.parallel.zero_stage, config.train
    if config.parallel.offload == "none":
        return Sharded(stage, numels, stored, world_size)
    accumulates = train.global_batch_size > train.micro_batch_size * world_size
    return Offloaded(stage, numels, stored, world_size, accumulates, cuda)


def weight_buffers(module: nn.Module) -> list[Tensor]:
    """The module's own buffers that are weights: 8-bit ones, and dense matrices that do not train."""
    all_of_them = isinstance(module, Int8Linear)
    return [buffer for buffer in module.buffers(recurse=False) if all_of_them or buffer.is_floating_point()]


def at_rest(config: Config, world_size: int, cuda: bool) -> int:
    """Bytes of weights and state before the first step, in the process that has most."""
    layers = config.model.n_layers
    if (
        world_size == 1 and layers > 2 and layers_alike(config)
    ):  # each layer adds as much, and the models are small to build
        one, two = (at_rest(with_layers(config, n), world_size, cuda) for n in (1, 2))
        return one + (layers - 1) * (two - one)
    model = shape_of(config)
    buffers = sum(buffer.nbytes for module in model.modules() for buffer in weight_buffers(module))
    if config.parallel.zero_stage > 0:
        return sharded_state(config, model, world_size, cuda).before + buffers
    weights = sum(p.nbytes for p in model.parameters()) + buffers
    with tracing(Ledger(), cuda=False):
        optimizer = build_optimizer(config.optimizer, model, exchange=Silent(0, world_size))
        return weights + max(_state_by_rank(optimizer, world_size))


def _state_by_rank(optimizer: torch.optim.Optimizer, world_size: int) -> list[int]:
    """Bytes of the optimizer's state on each rank."""
    if not isinstance(optimizer, OwnOptimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return [sum(2 * p.nbytes + 4 for p in parameters)] * world_size
    state = [0] * world_size
    for _, owner, tensor, _ in optimizer.tensors():
        for rank in range(world_size) if owner == -1 else (owner,):
            state[rank] += tensor.nbytes
    optimizer.unhook()
    return state


def busy_ranks(config: Config, world_size: int) -> list[int]:
    """The ranks that may have most: by their state, and by the largest part that they step."""
    if world_size == 1:
        return [0]
    with tracing(Ledger(), cuda=False):
        model = shape_of(config)
        optimizer = build_optimizer(config.optimizer, model, exchange=Silent(0, world_size))
        if not isinstance(optimizer, OwnOptimizer):
            return [0]
        state, parts = _state_by_rank(optimizer, world_size), [0] * world_size
        for element in optimizer.elements:
            parts[element.owner] = max(parts[element.owner], element.parameter.numel())
    return sorted({state.index(max(state)), parts.index(max(parts))})
