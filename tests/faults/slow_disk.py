"""Run by test_background_saves.py in place of `python -m pretrain`: the second save never ends its first file."""

import sys
import threading
from pathlib import Path

from pretrain.checkpoint import save
from pretrain.cli import main

write_tensors = save.write_tensors


def write(path: Path, tensors):
    if path.parent.name.startswith("step-00000004"):
        path.write_bytes(b"half")
        (path.parents[2] / "never ends").touch()
        threading.Event().wait()
    return write_tensors(path, tensors)


save.write_tensors = write
sys.exit(main())
