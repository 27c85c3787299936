"""Work in a process of its own, for C code that keeps Python from running a signal's handler until it is done."""

import ctypes
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from typing import NoReturn, TypeVar

from model.errors import RunFailed

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def in_child(what: str, work: Callable[[], T]) -> T:
    """Run `work` in a fork, which sees all that is here, and return what it returns or raise what it raises.

    Whatever a signal's handler raises here ends the fork too, as does the end of this process. RunFailed where the fork
    is killed; `what` names it there.
    """
    parent, pid = os.getpid(), 0
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # no handler runs before `finally` knows the fork
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of whose locks the work takes
            pid = os.fork()
        if not pid:
            _be_child(work, parent, write)
        os.close(write)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with open(read, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pid = 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if status:
        raise RunFailed(f"{what} was killed (signal {-status}): is there too little memory?")
    value, error = pickle.loads(answer)
    if error is not None:
        raise error
    return value


def _be_child(work: Callable[[], object], parent: int, write: int) -> NoReturn:
    """Do the work, tell of it, and end without what Python does at the end of a process."""
    status = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            try:
                outcome = work(), None
            except Exception as error:
                outcome = None, error  # type: ignore[assignment]
            with open(write, "wb") as pipe:
                pipe.write(pickle.dumps(outcome))
            status = 0
    finally:
        os._exit(status)
