"""One part of the check on a GPU, and what it runs: processes of their own, each with a time limit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TAIL = 3000
"""Characters of a failed command's output that are kept."""


class NotPassed(Exception):
    """A part that has not passed: why, in one sentence; `figures` holds what is known nevertheless."""

    def __init__(self, sentence: str, **figures: Any):
        super().__init__(sentence)
        self.figures = figures


class Skipped(NotPassed):
    """A part that cannot run here."""


class Failed(NotPassed):
    """A part that found a fault, or broke."""


@dataclass(frozen=True)
class Done:
    """A finished command; `status` is None when it ran into its time limit and was killed."""

    status: int | None
    stdout: str
    stderr: str

    def require(self, what: str, **figures: Any) -> str:
        """Return the output; Failed, with `figures`, unless the status is 0."""
        if self.status == 0:
            return self.stdout
        why = "did not finish in time" if self.status is None else f"ended with status {self.status}"
        raise Failed(f"{what} {why}", **figures, output=(self.stdout + self.stderr)[-TAIL:])


@dataclass(frozen=True)
class Part:
    """`run` returns figures, or raises Skipped or Failed."""

    name: str
    run: Callable[["Check"], dict[str, Any]]
    proof: bool = True
    """Whether the check fails when no time is left for it; a timing is then skipped."""


@dataclass
class Check:
    """What the parts share. The defaults are those of a real check; a test makes everything small."""

    work: Path
    """An empty folder."""
    device: str = "cuda"
    repeats: int = 1000
    turns: int = 3
    steps: int = 200
    small: list[str] = field(default_factory=list)
    """Further overrides of every training run, and a sign that all else is to be small too."""
    data: Path | None = None
    """A prepared corpus; made from the standard library when None."""
    deadline: float = field(default_factory=lambda: time.monotonic() + 440)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def python(self, *arguments: str, limit: float, **environment: str) -> Done:
        """Run Python from the repository's root; `limit` in seconds, less where the whole check has less left."""
        return self.run(sys.executable, *arguments, limit=limit, **environment)

    def run(self, *command: str, limit: float, **environment: str) -> Done:
        env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=max(1.0, min(limit, self.seconds_left)))
            return Done(process.returncode, stdout, stderr)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Done(None, *process.communicate())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
