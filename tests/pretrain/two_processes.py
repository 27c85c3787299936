"""Run by test_world_size.py under a launcher: trains one configuration in several kinds in this process group.

Arguments: the configuration file, a folder for the runs, steps, and each kind as name:option. Each run pauses half-way.
Checkpoints are cut into many files, so that both ranks write some.
"""

import sys

from gloo_threads import gloo_threads

from pretrain.checkpoint import save
from pretrain.config import load_config
from pretrain.loop.train import train
from pretrain.machine import distributed

path, folder, steps, *kinds = sys.argv[1:]
save.SHARD_BYTES = 8192
with distributed.processes() as world:
    assert gloo_threads()
    for kind in kinds:
        name, _, option = kind.partition(":")
        for last in (int(steps) // 2, int(steps)):
            options = [option, f"--run.dir={folder}/{name}", f"--train.max_steps={last}"]
            assert train(load_config(path, options), world) == 0
assert not gloo_threads()
