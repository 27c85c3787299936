"""Runs as processes of `sparlow train`: one after another, several on a processor's cores, or one on each GPU."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from pretrain.compare.matrix import Run
from pretrain.config.write import to_toml
from pretrain.machine.own_module import command, environment
from pretrain.machine.stop import KILLED, SAME_S, STOPPED

CONFIG, LOG = "config.toml", "log.txt"
"""What a comparison writes into a run's folder: its configuration, and what `train` has said."""

COMMAND = command("pretrain", "train")
POLL_S = 0.1
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Place = dict[str, str]
"""Environment variables of a process that say where it computes."""


def places(jobs: int, gpus: Sequence[str]) -> list[Place]:
    """Where runs compute at the same time: each on a GPU, or each on its share of the cores."""
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:  # one alone takes them all, and the user's word stands
        return [{} for _ in range(jobs)]
    return [{"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))} for _ in range(jobs)]


def missing_gpus(gpus: Sequence[str]) -> list[str]:
    """Name the `gpus` with which a process would find no GPU, and train on the processor instead.

    Asked of processes, which see what a run will see: a number, a UUID or a part of a GPU.
    """
    asked = (sys.executable, "-P", "-c", "import torch; raise SystemExit(torch.cuda.device_count() != 1)")
    answers = [subprocess.Popen(asked, env=dict(os.environ) | place) for place in places(1, gpus)]
    return [gpu for gpu, answer in zip(gpus, answers, strict=True) if answer.wait()]


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    run: Run
    status: int
    seconds: float
    said_from: int
    """Where in its log it begins: what is before is of processes before it."""

    @property
    def reason(self) -> str:
        """Why it failed, in its own words where it had time for some."""
        if self.status < 0:
            killed = self.status == -signal.SIGKILL
            return f"killed (signal {-self.status})" + ("; is there too little memory?" if killed else "")
        if self.status in (STOPPED, KILLED):
            return "stopped by a signal; the same command goes on with it"
        lines = [line for line in _tail(self.run.folder / LOG, self.said_from) if line.strip()]
        said = [line.partition("sparlow train: ")[2] for line in lines if line.startswith("sparlow train: ")]
        return (said or lines or [f"exit status {self.status}"])[-1].strip()


@dataclass
class _Process:
    run: Run
    place: Place
    began: float
    said_from: int
    popen: "subprocess.Popen[bytes]"


class Pool:
    """Processes in places. As a context it hears signals: the first has every process commit a checkpoint and stop, a
    second one ends them at once; no further one starts.
    """

    def __init__(self, where: Sequence[Place], begins: Callable[[Run], None]):
        self.begins = begins
        """Is told of each run before it starts."""
        self.free = deque(where)
        self.size = len(where)
        self.stopped = 0
        """0, or the exit status that a signal asks for."""
        self._asked_at = 0.0
        self._running: list[_Process] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Pool":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._signal(signal.SIGTERM)  # of an error; else none is left
        for process in self._running:
            process.popen.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, runs: Sequence[Run]) -> Iterator[Ended]:
        """Run them in this order, as many at a time as there are places, and yield each as it ends."""
        waiting = deque(runs)
        while self._running or (waiting and not self.stopped):
            while waiting and self.free and not self.stopped:
                self._start(waiting.popleft(), self.free.popleft())
            ended = [process for process in self._running if process.popen.poll() is not None]
            for process in ended:
                self._running.remove(process)
                self.free.append(process.place)
                seconds = time.monotonic() - process.began
                yield Ended(process.run, process.popen.returncode, seconds, process.said_from)
            if not ended:
                time.sleep(POLL_S)

    def _start(self, run: Run, place: Place) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / CONFIG).write_text(to_toml(run.config), encoding="utf-8")
        self.begins(run)
        variables = {key: value for key, value in environment().items() if key != "SPARLOW_STOPPED"} | place
        began = time.monotonic()
        with (run.folder / LOG).open("ab") as log:
            said_from = log.tell()
            # A session of its own: what a terminal sends to all comes once, from here.
            popen = subprocess.Popen(
                [*COMMAND, str(run.folder / CONFIG)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._running.append(_Process(run, place, began, said_from, popen))
        if self.stopped:  # told while it was started
            popen.terminate()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if not self.stopped:
            self.stopped, self._asked_at = STOPPED, time.monotonic()
            self._signal(signal.SIGTERM)
        elif number != signal.SIGHUP and time.monotonic() - self._asked_at > SAME_S:
            self.stopped = KILLED
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._running:
            process.popen.send_signal(number)


def _end_with_parent() -> None:
    """Let this process be told to stop, with a checkpoint, when the one that has started it is gone."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _tail(path: Path, begin: int, most: int = 8192) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(begin, path.stat().st_size - most))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
