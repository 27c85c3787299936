"""The watch of a process over the others, in threads beside training: one verdict ends them all, with one sentence.

NCCL does not notice that another rank of the same machine is gone, nor does a rank inside an exchange of its see a
signal: without a word it would wait until the launcher kills it, or the exchange times out. So each rank's watch leaves
a beat in the store that torch.distributed has begun with, and looks there, every TICK_S, for

- a verdict: a rank that fails alone says why, and all ranks end with its sentence and status;
- a rank whose beat has stopped (a stopped process, a machine that is gone): rank 0 watches all, the others rank 0;
- a rank that has been told to stop: see pretrain/machine/stop.py.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from pretrain.machine import stop

T = TypeVar("T")

TICK_S = 0.5
GRACE_S = 1.5
"""How long the others stay, so that the launcher sees the one that failed end first and names it."""
STORE_GONE_S = 5.0
AGREE_S = 15.0
"""How long the ranks may take to agree on where to stop: one that has been killed never says where it is."""
BLAME_S = 3.0
"""A rank without a beat for so long, after an exchange has failed, is the one that is gone."""
AGENT = "TORCHELASTIC_USE_AGENT_STORE"


@dataclass(frozen=True)
class Verdict:
    """Why all ranks end, and with what status; `by` is the rank that says so."""

    by: int
    status: int
    sentence: str
    host: str = socket.gethostname()


class Watch:
    """The threads of one rank of several; a rank that is silent for `silence_s` seconds ends the run."""

    def __init__(self, rank: int, size: int, silence_s: float):
        self.rank, self.size, self.silence_s = rank, size, silence_s
        self.verdict: Verdict | None = None
        """The verdict that this process has learned of, and ends by."""
        self._store, self._own_store = _clone(), _clone()  # a store answers one thread at a time
        self._over, self._wake = threading.Event(), threading.Event()
        self._clock = 0.0
        self._answered = 0.0
        self._lost_at: float | None = None
        self._beat = 0
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._told_all = False
        self._held_at: float | None = None
        stop.agree_by(self._wake.set)
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("watch", self._look), ("watch_store", self._watch_store))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the watch; the other ranks must have come as far."""
        self._over.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(TICK_S)
        stop.agree_by(None)

    def end_all(self, status: int, sentence: str) -> NoReturn:
        """End all ranks with `sentence`, or with what another has said before."""
        if self.verdict is None:
            self.verdict = _within(2 * TICK_S, lambda: self._pronounce(self._own_store, status, sentence))
        verdict = self.verdict or Verdict(self.rank, status, sentence)
        if verdict.by == self.rank:
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline and _within(GRACE_S, self._acknowledged) is False:
                time.sleep(0.02)
        else:
            time.sleep(GRACE_S)
        self._end(verdict)

    def missing(self) -> list[int]:
        """The ranks whose beat has stopped, seen for BLAME_S; a verdict that comes meanwhile ends the process."""
        before = _within(BLAME_S, lambda: self._read_beats(self._own_store))
        self._over.wait(BLAME_S)
        after = _within(BLAME_S, lambda: self._read_beats(self._own_store))
        if self.verdict is not None:
            time.sleep(GRACE_S)
            self._end(self.verdict)
        if before is None or after is None:
            return [0]  # the store went with it
        return [rank for rank in range(self.size) if rank != self.rank and before.get(rank) == after.get(rank)]

    def _look(self) -> None:
        while not self._over.is_set():
            try:
                self._tick()
                self._lost_at, self._answered = None, self._clock
            except (RuntimeError, ValueError):  # the store is gone, with the process that held it
                self._lost_at = self._clock if self._lost_at is None else self._lost_at
            agreeing = self._held_at is not None or self._told_all
            self._wake.wait(TICK_S / 10 if agreeing and not self._lost_at else TICK_S)
            self._wake.clear()

    def _tick(self) -> None:
        self._beat += 1
        self._store.set(f"beat/{self.rank}", str(self._beat))
        if self._store.check(["verdict"]):
            self._follow(Verdict(**json.loads(self._store.get("verdict"))))
        if stop.asked() and stop.is_opening():
            sentence = "stopped while the run opened; the same command opens it again"
            self._follow(self._pronounce(self._store, stop.STOPPED, sentence))
        self._agree()
        self._look_for_silent()

    def _agree(self) -> None:
        """Where to stop: each tells how far it is, rank 0 takes the place after the farthest."""
        store, counts = self._store, [f"stop/count/{rank}" for rank in range(self.size)]
        if stop.asked() and not self._told_all:
            self._told_all = True
            store.set("stop/asked", str(self.rank))
        if self._held_at is None and store.check(["stop/asked"]):
            store.set(counts[self.rank], str(stop.hold()))
            self._held_at = self._clock
        if self._held_at is None or stop.is_agreed():
            return
        if self.rank == 0 and all(store.check([count]) for count in counts):
            store.set("stop/place", str(1 + max(int(store.get(count)) for count in counts)))
        if store.check(["stop/place"]):
            stop.stop_at(int(store.get("stop/place")))
        elif self._clock - self._held_at > AGREE_S:
            silent = [rank for rank, count in enumerate(counts) if not store.check([count])]
            sentence = f"told to stop, but {processes(silent)} did not answer for {AGREE_S:.0f} s (killed or stopped?)"
            self._follow(self._pronounce(store, 1, f"{sentence}; the newest checkpoint is the way on"))

    def _look_for_silent(self) -> None:
        for rank, beat in self._read_beats(self._store, everybody=self.rank == 0).items():
            if rank == self.rank or self._beats.get(rank, (b"", 0.0))[0] != beat:
                self._beats[rank] = beat, self._clock
        silent = [rank for rank, (_, at) in self._beats.items() if self._clock - at > self.silence_s]
        if silent:
            self._follow(self._pronounce(self._store, 1, self._silence(processes(silent))))

    def _silence(self, who: str) -> str:
        return (
            f"{who} gave no sign of life for {self.silence_s:.0f} s (parallel.timeout_minutes): stopped, or its "
            "machine is gone; the same command goes on from the newest checkpoint"
        )

    def _read_beats(self, store: dist.Store, everybody: bool = True) -> dict[int, bytes]:
        ranks = range(self.size) if everybody else range(1)
        there = [rank for rank in ranks if rank in self._beats or store.check([f"beat/{rank}"])]
        return dict(zip(there, store.multi_get([f"beat/{rank}" for rank in there]) if there else [], strict=True))

    def _watch_store(self) -> None:
        """Keep the clock, and end where the store does not answer: the process that holds it is stopped or gone."""
        last = time.monotonic()
        while not self._over.wait(TICK_S):
            now = time.monotonic()
            # Not the time in which this process itself was stopped, with all others perhaps.
            self._clock += min(now - last, 4 * TICK_S)
            last = now
            holder = "the launcher's store" if os.environ.get(AGENT) == "True" else "process 0"
            if self._lost_at is not None and self._clock - self._lost_at > STORE_GONE_S:
                self._end(Verdict(self.rank, 1, f"{holder} is gone (killed?); nobody can go on without it"))
            if self._clock - self._answered > self.silence_s + 2 * TICK_S:
                self._end(Verdict(self.rank, 1, self._silence(holder)))

    def _pronounce(self, store: dist.Store, status: int, sentence: str) -> Verdict:
        """The first verdict that any rank has spoken."""
        text = json.dumps(asdict(Verdict(self.rank, status, sentence)))
        return Verdict(**json.loads(store.compare_set("verdict", "", text)))

    def _acknowledged(self) -> bool:
        return self._own_store.add("acknowledged", 0) >= self.size - 1

    def _follow(self, verdict: Verdict) -> None:
        self.verdict = verdict
        if verdict.by != self.rank:
            self._store.add("acknowledged", 1)
        if not self._over.wait(GRACE_S if verdict.by != self.rank else 2 * TICK_S):
            self._end(verdict)

    def _end(self, verdict: Verdict) -> NoReturn:
        """End with the verdict; the one who spoke says it, and on other machines the first process of each."""
        first_there = verdict.host != socket.gethostname() and os.environ.get("LOCAL_RANK") == "0"
        stop.end(verdict.sentence if verdict.by == self.rank or first_there else None, verdict.status)


def processes(ranks: list[int]) -> str:
    """Name them: "process 1", "processes 1, 2"."""
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _clone() -> dist.Store:
    store: Any = dist.distributed_c10d._get_default_store()
    return dist.PrefixStore("sparlow", store.clone())


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns; None where it fails, or takes longer, as a store does whose holder is stopped."""
    results: list[T] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
