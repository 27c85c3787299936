"""Run by test_matrix_world.py under torchrun: trains with one matrix optimizer after the other in this process group.

Arguments: the configuration file, a folder for the runs, steps, preset names. Each run pauses half-way, in the middle
of a refresh period. At the end of each, the weights of all ranks are compared bit by bit.
"""

import sys
import zlib

from gloo_threads import gloo_threads

import pretrain.loop.run
from pretrain.checkpoint import save
from pretrain.config import load_config
from pretrain.engine.build import build_engine
from pretrain.loop.train import train
from pretrain.machine import distributed
from pretrain.machine.distributed import gather_outcomes

path, folder, steps, *presets = sys.argv[1:]
save.SHARD_BYTES = 8192
engines = []
pretrain.loop.run.build_engine = lambda *arguments: engines.append(build_engine(*arguments)) or engines[-1]


def checksum(model):
    total = 0
    for tensor in model.state_dict().values():
        total = zlib.crc32(tensor.detach().float().cpu().numpy().tobytes(), total)
    return total


with distributed.processes() as world:
    assert gloo_threads()
    for preset in presets:
        name, _, weights = preset.partition("-")
        for last in (int(steps) // 2, int(steps)):
            options = [f"--optimizer.name={name}", f"--run.dir={folder}/{preset}", f"--train.max_steps={last}"]
            if weights:
                options += [f"--optimizer.{'accumulators' if weights == 'host' else 'weights'}={weights}"]
                options += ["--train.dtype=bf16"] if weights.startswith("bf16") else []
            assert train(load_config(path, options), world) == 0
            assert len(set(gather_outcomes(world, checksum(engines[-1].model)))) == 1, f"{preset}: ranks differ"
    engines.clear()
assert not gloo_threads()
