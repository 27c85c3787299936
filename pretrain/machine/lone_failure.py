"""One rank that fails alone ends the job; the others, who would wait for it in their next exchange, end with it."""

import contextlib
import re
import traceback
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from model.errors import RunFailed, UserError
from pretrain.machine.watch import Watch, processes

LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket", re.IGNORECASE)
"""What an exchange fails with when another process is gone, whatever library makes it."""


def fail(watch: Watch, error: Exception) -> NoReturn:
    """Say why, tell the others and end: taking the process group apart may need them all."""
    if watch.verdict is None and lost_connection(error):
        _blame(watch, error)
    if watch.verdict is None and not isinstance(error, UserError | RunFailed):
        traceback.print_exception(error)
    with contextlib.suppress(Exception):
        get_error_handler().record_exception(error)  # torchrun ends with it
    watch.end_all(2 if isinstance(error, UserError) else 1, f"process {watch.rank}: {sentence(error)}")


def lost_connection(error: Exception) -> bool:
    """Whether `error` is that of an exchange whose other side is gone: a consequence, not a cause."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))


def sentence(error: Exception) -> str:
    """An error in words: a sentence of ours as it is, another with its kind."""
    return str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"


def _blame(watch: Watch, error: Exception) -> NoReturn:
    gone = watch.missing()
    # gloo says where in its source it is, and after the first sentence what it may mean.
    cause = re.sub(r"^\[\S+:\d+\] ", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
    if gone:
        watch.end_all(1, f"{processes(gone)} ended without a word (killed, or out of memory?): {cause}")
    watch.end_all(1, f"process {watch.rank} lost the connection to another: {cause}")
