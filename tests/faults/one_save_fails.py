"""Run by test_saves_of_two.py in place of `python -m pretrain`: from its second save's third tensor on, rank 1 fails.

FAILS says where: "before" the ranks exchange the tensor, or in its "copy" to host memory.
"""

import os
import sys
from functools import partial

import torch

from pretrain.checkpoint import save
from pretrain.cli import main
from pretrain.engine.base import Engine, Gathered
from pretrain.engine.own import OwnEngine

save.SHARD_BYTES = 8192
whole_tensors, saves = Engine.whole_tensors, 0


def broken(read):
    if os.environ["FAILS"] == "before":
        raise MemoryError("broken on one rank")
    return torch.empty_like(read(), device="meta")  # without data, so it cannot be copied


def failing(engine):
    global saves
    saves += engine.deepspeed.global_steps > 0
    strikes, seen = saves == 2 and os.environ["RANK"] == "1", 0
    for name, size, read in whole_tensors(engine):
        kind = Gathered if isinstance(read, Gathered) else partial
        seen += kind is Gathered or os.environ["FAILS"] == "copy" or engine.zero_stage == 0
        yield name, size, kind(broken, read) if strikes and seen >= 3 else read


OwnEngine.zero_stage = None
Engine.whole_tensors = failing
sys.exit(main())
