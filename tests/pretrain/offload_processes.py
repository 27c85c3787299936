"""Run by test_offload.py under torchrun: trains one run per kind in this process group, each paused after two steps.

Arguments: the configuration file, a folder for the runs, then NAME=OVERRIDES with the overrides joined by commas.
"""

import sys

from pretrain.checkpoint import save
from pretrain.config import load_config
from pretrain.loop.train import train
from pretrain.machine import distributed

path, folder, *kinds = sys.argv[1:]
save.SHARD_BYTES = 8192
with distributed.processes() as world:
    for kind in kinds:
        name, _, overrides = kind.partition("=")
        here = [*overrides.split(","), f"--run.dir={folder}/{name}"]
        for more in (["--train.max_steps=2"], []):
            assert train(load_config(path, [*here, *more]), world) == 0
