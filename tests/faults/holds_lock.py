"""A process that takes the lock of a run folder and holds it: FOLDER, and "no-flock" where the file system has none.

"children" forks one that outlives it. It says "taken", or why not, and then waits.
"""

import errno
import fcntl
import os
import sys
import time
from pathlib import Path

folder, kinds = Path(sys.argv[1]), sys.argv[2:]
if "no-flock" in kinds:

    def none(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    fcntl.flock = none

from model.errors import UserError  # noqa: E402
from pretrain.checkpoint.store import CheckpointStore  # noqa: E402

store = CheckpointStore(folder)
try:
    store.lock()
    print("taken", flush=True)
except UserError as error:
    print(error, flush=True)
    os._exit(2)  # at once: to take an interpreter with torch apart costs seconds
if "children" in kinds and not os.fork():
    os.close(1)
    time.sleep(30)
    os._exit(0)
if "ends" not in kinds:
    time.sleep(60)
store.unlock()
os._exit(0)
