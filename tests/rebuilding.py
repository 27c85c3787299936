"""Engines that live for two steps, one after the other in a process, and what is left of them.

Driven by tests/pretrain/test_engine_release.py, and run by it as each of two processes. Arguments: a configuration
file, then one set of overrides per kind of engine, each joined by commas.
"""

import gc
import sys
import weakref
from pathlib import Path

import torch

from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.data.dataset import Batch
from pretrain.engine.build import build_engine
from pretrain.loop.build import build
from pretrain.machine import distributed
from pretrain.machine.distributed import World

Remains = list[tuple[str, weakref.ref]]


def tensors() -> list[torch.Tensor]:
    """Every tensor that Python knows of."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def live_bytes() -> int:
    """Bytes of their storages, each counted once."""
    strided = [t.untyped_storage() for t in tensors() if t.layout is torch.strided]
    storages = {storage.data_ptr(): storage.nbytes() for storage in strided}
    return sum(storages.values())


def live(config: Config, world: World) -> Remains:
    """Build an engine, take two steps, evaluate, read all of its state and close it; what there was, by name."""
    before = {id(tensor) for tensor in tensors()}
    micro_steps = config.train.global_batch_size // config.train.micro_batch_size // world.size
    engine = build_engine(build(config, world.device), config, world, micro_steps)
    random = torch.Generator().manual_seed(world.rank)
    tokens = torch.randint(config.model.vocab_size, (config.train.micro_batch_size, 16), generator=random)
    for _ in range(2):
        engine.begin(1e-3)
        for _ in range(micro_steps):
            engine.micro_step(Batch(tokens, tokens), config.train.global_batch_size * 16)
        assert engine.update().applied
    with torch.no_grad():
        engine.model(tokens, tokens)
    for _, _, read in engine.whole_tensors():
        read()
    held = {"deepspeed": engine.deepspeed, "optimizer": engine.optimizer, "sharding": engine.deepspeed.optimizer}
    held |= {f"module {name}": module for name, module in engine.model.named_modules()}
    held |= dict(engine.model.named_parameters())
    held |= {f"tensor {tuple(t.shape)}": t for t in tensors() if id(t) not in before}
    engine.close()
    return [(name, weakref.ref(thing)) for name, thing in held.items()]


def survivors(remains: Remains) -> list[str]:
    """Names of what is still there."""
    gc.collect()
    return [name for name, reference in remains if reference() is not None]


def check(path: Path, overrides: list[str], world: World, lives: int = 4) -> None:
    """Nothing of an engine outlives it, and tensors take no more memory after `lives` engines than after one.

    A first engine comes before these: tables that all models of the process share are made with it.
    """
    config = load_config(path, overrides)
    live(config, world)
    live_after = []
    for _ in range(lives):
        left = survivors(live(config, world))
        assert not left, f"{overrides}: {len(left)} things outlive their engine: {left[:5]}"
        live_after.append(live_bytes())
    assert live_after[-1] == live_after[0], f"{overrides}: bytes of tensors after each engine: {live_after}"


if __name__ == "__main__":
    with distributed.processes() as world:
        for overrides in sys.argv[2:]:
            check(Path(sys.argv[1]), overrides.split(","), world, lives=2)
