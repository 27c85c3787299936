"""Run by processes.train_world as each rank: trains runs of one configuration, one after the other in one world.

Arguments: the configuration file, and a JSON list of the options of each run; a run paused by train.max_steps goes on
where its folder comes again. Checkpoints are cut into many files, so that all ranks write some. After each run, the
weights of all ranks are compared bit by bit. At the end, no thread of gloo's may be left: one that outlives the process
group may abort the process while the interpreter shuts down, once in some hundred runs.
"""

import json
import sys
import zlib
from pathlib import Path

import pretrain.loop.run
from model.transformer import Transformer
from pretrain.checkpoint import save
from pretrain.config import load_config
from pretrain.engine.build import build_engine
from pretrain.loop.train import train
from pretrain.machine import distributed
from pretrain.machine.distributed import gather_outcomes


def gloo_threads() -> list[str]:
    """Names of those of this process that are alive."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def checksum(model: Transformer) -> int:
    total = 0
    for tensor in model.state_dict().values():
        total = zlib.crc32(tensor.detach().float().cpu().numpy().tobytes(), total)
    return total


if __name__ == "__main__":
    path, runs = sys.argv[1:]
    save.SHARD_BYTES = 8192
    engines = []
    pretrain.loop.run.build_engine = lambda *arguments: engines.append(build_engine(*arguments)) or engines[-1]
    with distributed.processes() as world:
        assert gloo_threads()
        for options in json.loads(runs):
            assert train(load_config(path, options), world) == 0
            assert len(set(gather_outcomes(world, checksum(engines[-1].model)))) == 1, f"{options}: ranks differ"
            engines.clear()
    assert not gloo_threads()
