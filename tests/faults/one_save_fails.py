"""Run by test_saves_of_two.py in place of `python -m pretrain`: rank 1 fails in the save of step 4.

FAILS says where: from the third tensor on "before" the ranks exchange it or in its "copy" to host memory, or when a
file is written: by a full "disk" or a "kill".
"""

import os
import signal
import sys
from functools import partial

import torch

from pretrain.checkpoint import save
from pretrain.cli import main
from pretrain.engine.base import Engine, Gathered
from pretrain.engine.own import OwnEngine

save.SHARD_BYTES = 8192
whole_tensors, write_tensors = Engine.whole_tensors, save.write_tensors
fails, first = os.environ["FAILS"], os.environ["RANK"] == "0"


def broken(read):
    if fails == "before":
        raise MemoryError("broken on one rank")
    return torch.empty_like(read(), device="meta")  # without data, so it cannot be copied


def failing(engine):
    strikes, seen = engine.deepspeed.global_steps == 4 and not first, 0
    for name, size, read in whole_tensors(engine):
        kind = Gathered if isinstance(read, Gathered) else partial
        seen += kind is Gathered or fails == "copy" or engine.zero_stage == 0
        yield name, size, kind(broken, read) if strikes and seen >= 3 else read


def failing_write(path, tensors):
    if not first and path.parent.name.startswith("step-00000004"):
        if fails == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")
    return write_tensors(path, tensors)


OwnEngine.zero_stage = None
if fails in ("disk", "kill"):
    save.write_tensors = failing_write
else:
    Engine.whole_tensors = failing
sys.exit(main())
