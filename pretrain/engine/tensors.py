"""Every tensor of a run, whole and by name, out of the engine and back, at any ZeRO stage and world size.

Names: `model.<parameter or buffer>` (the fp32 master where there is one) and `optimizer.<parameter>.<state>`.
Reading is collective: all ranks ask for the same names in the same order.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.linear.support.base import check_supports
from pretrain.data.dataset import Batch
from pretrain.engine.accelerator import import_deepspeed
from pretrain.engine.engine import Engine
from pretrain.engine.sharded import ShardedEngine

MOMENTS = ("exp_avg", "exp_avg_sq")


def parameters(engine: Engine) -> list[tuple[str, nn.Parameter]]:
    return list(engine.model.named_parameters())


def buffers(engine: Engine) -> list[tuple[str, Tensor]]:
    """The persistent buffers: sparse supports and 8-bit weights."""
    names = engine.model.state_dict().keys()
    return [(name, buffer) for name, buffer in engine.model.named_buffers() if name in names]


def whole_tensors(engine: Engine) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
    """(name, bytes, read) of every tensor in a fixed order; `read()` is collective and valid until the next one."""
    for name, buffer in buffers(engine):
        yield f"model.{name}", buffer.nbytes, partial(torch.Tensor.detach, buffer)
    for name, parameter in parameters(engine):
        yield f"model.{name}", _master_bytes(engine, parameter), partial(_read_master, engine, parameter)
    if isinstance(engine, ShardedEngine):
        for name, size, read in engine.state_tensors():
            yield f"optimizer.{name}", size, read
        return
    for name, parameter in parameters(engine):
        for key in MOMENTS:
            read = partial(_read_moment, engine, parameter, key)
            yield f"optimizer.{name}.{key}", _master_bytes(engine, parameter), read


def restore(
    engine: Engine, read: Callable[[str], Tensor], updates: int, warm_up: Batch, has_optimizer: bool = True
) -> None:
    """Put weights, masters, moments and AdamW's step count back; without `has_optimizer` its state stays fresh.

    `read(name)` gives a whole tensor; `updates` is the number of applied optimizer steps; `warm_up` is any batch of
    the run's shape: sharded state exists only after a first optimizer step, so one is taken at learning rate 0.
    """
    if isinstance(engine, ShardedEngine):
        _restore_own(engine, read, has_optimizer)
        return
    if engine.stage:
        _materialise(engine, warm_up)
    with torch.no_grad():
        for name, buffer in buffers(engine):
            buffer.copy_(read(f"model.{name}"))
        for name, parameter in parameters(engine):
            weight = read(f"model.{name}")
            _write_working(engine, parameter, weight)
            _write_master(engine, parameter, weight)
            for key in MOMENTS if has_optimizer else ():
                _write_moment(engine, parameter, key, read(f"optimizer.{name}.{key}"))
    _weights_were_read(engine)
    for partition, state in engine.deepspeed.basic_optimizer.state.items():  # in host memory under parallel.offload
        state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=partition.device)


def _restore_own(engine: ShardedEngine, read: Callable[[str], Tensor], has_optimizer: bool) -> None:
    with torch.no_grad():
        for name, tensor in [*buffers(engine), *parameters(engine)]:
            tensor.copy_(read(f"model.{name}"))
    if has_optimizer:
        engine.restore_state(lambda name: read(f"optimizer.{name}"))
    _weights_were_read(engine)


def _weights_were_read(engine: Engine) -> None:
    check_supports(engine.model)
    engine.parameters_changed()


def _materialise(engine: Engine, batch: Batch) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    tokens, targets = batch.tokens.to(engine.world.device), batch.targets.to(engine.world.device)
    for _ in range(engine.deepspeed.gradient_accumulation_steps()):
        engine.deepspeed.backward(engine.deepspeed(tokens, targets) * 0)
        engine.deepspeed.step()


def _master_bytes(engine: Engine, parameter: nn.Parameter) -> int:
    numel = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty parameter behind
    return numel * (4 if engine.stage else parameter.element_size())


def _read_master(engine: Engine, parameter: nn.Parameter) -> Tensor:
    if engine.stage == 0:
        return parameter.detach()
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter)


def _read_moment(engine: Engine, parameter: nn.Parameter, key: str) -> Tensor:
    if engine.stage == 0:
        return engine.optimizer.state[parameter][key]
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, key)


def _write_working(engine: Engine, parameter: nn.Parameter, weight: Tensor) -> None:
    """The copy that the forward pass uses: setting the fp32 master does not refresh it."""
    if engine.stage < 3:
        parameter.copy_(weight)
        return
    deepspeed = import_deepspeed()
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if engine.world.is_main:
            parameter.copy_(weight)


def _write_master(engine: Engine, parameter: nn.Parameter, weight: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if engine.stage in (1, 2):
        safe_set_full_fp32_param(parameter, weight.float())
    elif engine.stage == 3:
        safe_set_local_fp32_param(parameter, _own_slice(engine, parameter, weight))


def _write_moment(engine: Engine, parameter: nn.Parameter, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if engine.stage == 0:
        engine.optimizer.state[parameter][key].copy_(value)
    elif engine.stage < 3:
        safe_set_full_optimizer_state(parameter, value.float(), key)
    else:
        safe_set_local_optimizer_state(parameter, _own_slice(engine, parameter, value), key)


def _own_slice(engine: Engine, parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This rank's part of a stage-3 partition, padded as DeepSpeed pads it (its own setter fails on uneven sizes)."""
    length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = F.pad(whole.float().flatten(), (0, length * engine.world.size - whole.numel()))
    return flat.narrow(0, engine.world.rank * length, length).to(engine.world.device)
