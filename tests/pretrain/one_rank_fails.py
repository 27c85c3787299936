"""Run by test_one_rank_fails.py in place of `python -m pretrain`: one rank fails in its fourth forward pass.

FAILING_RANK says which. With DEAF the others are as NCCL makes them: they wait for ever and see neither the end of the
one that failed nor a signal, and taking the process group apart waits for them.
"""

import os
import sys
import time

import torch.distributed as dist

from model.transformer import Transformer
from pretrain.cli import main

forward, calls = Transformer.forward, 0


def wait() -> None:
    while True:
        time.sleep(1)


def broken(self, *arguments):
    global calls
    calls += 1
    if calls == 4 and os.environ["RANK"] == os.environ["FAILING_RANK"]:
        raise ValueError("broken on one rank")
    if calls == 4 and "DEAF" in os.environ:
        wait()
    return forward(self, *arguments)


Transformer.forward = broken
if "DEAF" in os.environ:
    dist.destroy_process_group = wait
sys.exit(main())
