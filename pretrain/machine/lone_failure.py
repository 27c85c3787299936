"""One rank that fails alone ends the job; the others, who would wait for it in their next exchange, are told.

NCCL does not notice that another rank of the same machine is gone, nor does a rank inside an exchange of its see a
signal: without a word it would wait until the launcher kills it, or the exchange times out.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from model.errors import RunFailed, UserError

KEY = "sparlow/failed"
POLL_S = 1.0

GRACE_S = 5.0
"""How long the others stay, so that the launcher sees the one that failed end first and names it."""


def watch(rank: int) -> Callable[[], None]:
    """End this process when another rank has failed; returns what stops the watch."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(POLL_S):
            if _another_failed() and not over.wait(GRACE_S):
                _end_after_another(rank)

    thread = threading.Thread(target=look, name="lone_failure", daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join(POLL_S)

    return stop


def fail(rank: int, error: Exception) -> NoReturn:
    """Say why, tell the others and end at once: taking the process group apart may need them all."""
    if _another_failed():
        _end_after_another(rank)
    if not isinstance(error, UserError | RunFailed):
        traceback.print_exception(error)
    _say(f"process {rank}: {type(error).__name__}: {error}")
    with contextlib.suppress(Exception):
        get_error_handler().record_exception(error)  # torchrun ends with it
    with contextlib.suppress(Exception):
        _store().set(KEY, str(rank))
        time.sleep(2 * POLL_S)  # the store may be this process's
    os._exit(2 if isinstance(error, UserError) else 1)


def _another_failed() -> bool:
    try:
        return _store().check([KEY])
    except Exception:  # the store is gone, with the process that held it
        return False


def _end_after_another(rank: int) -> NoReturn:
    _say(f"process {rank} ends, because another has failed")
    os._exit(1)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
