"""Run by test_processes.py under torchrun: trains growth runs one after the other in this process group.

Arguments: the configuration file, and a JSON list of the options of each run.
"""

import json
import sys

from pretrain.checkpoint import save
from pretrain.config import load_config
from pretrain.loop.train import train
from pretrain.machine import distributed

path, runs = sys.argv[1:]
save.SHARD_BYTES = 8192  # many files, so that both ranks write some
with distributed.processes() as world:
    for options in json.loads(runs):
        assert train(load_config(path, options), world) == 0
