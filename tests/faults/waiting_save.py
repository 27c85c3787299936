"""Run by test_stopping.py in place of `python -m pretrain`: the save of the checkpoint WAITS_AT never ends.

It waits in a read of a pipe, as a write to a file system that does not answer would, after making `waits` beside the
run folder.
"""

import os
import sys

from pretrain.checkpoint import save
from pretrain.cli import main

write = save.write_hashed


def waiting(path, data):
    if path.parent.name.startswith(os.environ["WAITS_AT"]):
        path.parents[3].joinpath("waits").touch()
        os.read(os.pipe()[0], 1)
    return write(path, data)


save.write_hashed = waiting
sys.exit(main())
