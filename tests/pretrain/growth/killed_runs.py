"""Run by test_kills.py: starts runs that are killed by a fault, each in a fork of this process, which has imported all.

Argument: a JSON list of [fault, options of `sparlow train`]. Every run must die by SIGKILL.
"""

import json
import os
import signal
import sys

import torch._dynamo  # noqa: F401 - the first optimizer would import it, in every fork

from pretrain.config import load_config
from pretrain.loop.train import train
from pretrain.machine import distributed, memory
from pretrain.machine.distributed import import_deepspeed

import_deepspeed()
memory.keep_freed_memory()
for fault, (path, *overrides) in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        os.environ["SPARLOW_FAULT"] = fault
        with distributed.processes() as world:
            train(load_config(path, overrides), world)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"{fault}: exit status {os.waitstatus_to_exitcode(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL, fault
