"""Timing that survives a noisy machine: contestants in processes of their own take turns; a ratio is a turn's.

A contestant is a command that prints "ready", then for every line `n` on its standard input does n units of work and
prints the seconds they took.
"""

import subprocess
import sys
import time
from collections.abc import Callable

from model.errors import RunFailed
from pretrain.machine.own_module import command, environment


class Contestant:
    """One waiting process; it uses the machine only in its own turns."""

    def __init__(self, name: str, module: str, *arguments: str):
        self.name = name
        started = command(module, *arguments)
        self._process = subprocess.Popen(
            started, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while self._read() != "ready":
            pass

    def seconds(self, units: int) -> float:
        """Seconds for `units` units of work."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{units}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunFailed(f"bench: {self.name} ended early with status {self._process.wait()}")
        return line.strip()


def serve(work: Callable[[], object]) -> None:
    """The contestant's side: warm up once, then work on command."""
    work()
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            work()
        print(time.perf_counter() - started, flush=True)


def take_turns(contestants: list[Contestant], turns: int, units: int) -> dict[str, list[float]]:
    """Seconds per unit of every contestant in every turn, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range(turns + 1):
        for contestant in contestants:
            taken = contestant.seconds(units) / units
            if turn:
                seconds[contestant.name].append(taken)
    return seconds
