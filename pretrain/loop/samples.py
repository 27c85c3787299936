"""samples.jsonl: the texts that a run's model has written at its evaluations, one JSON object per line."""

import json
import os
from collections import deque
from pathlib import Path

from pretrain.machine.files import read_regular

MOST_WAITING = 1000
"""Texts that are kept in memory while the disk is full."""


class SampleFile:
    """Appends texts. Steps that are made again append theirs again, and the later line of a step and prompt counts.

    What cannot be written waits in memory for the next `flush`, MOST_WAITING lines at most; the oldest go first.
    """

    def __init__(self, path: Path):
        self._path = path
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)

    def put(self, step: int, prompt: str, text: str) -> None:
        """Take a text that begins with `prompt`. `flush` writes it."""
        self._waiting.append(json.dumps({"step": step, "prompt": prompt, "text": text}).encode())

    def flush(self) -> None:
        """Write what waits; OSError where that cannot be."""
        if not self._waiting:
            return
        # A line that a kill or a full disk has cut stays alone: the next one begins behind a line's end.
        data = b"".join(b"\n" + line for line in self._waiting) + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            end = os.fstat(file).st_size
            while data:
                data = data[os.write(file, data) :]
        except OSError:
            os.ftruncate(file, end)
            raise
        finally:
            os.close(file)
        self._waiting.clear()


def read_samples(path: Path, last_step: int) -> list[dict[str, object]]:
    """List the texts up to `last_step` in the order of steps, each as {"step", "prompt", "text"}.

    Lines that are none, which a kill or a full disk leaves, are left out; empty where there is no such file.
    """
    try:
        lines = read_regular(path).split(b"\n")
    except OSError:
        return []
    found: dict[tuple[int, str], str] = {}
    for line in lines:
        try:
            sample = json.loads(line.decode())
            step, prompt, text = sample["step"], sample["prompt"], sample["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if type(step) is int and isinstance(prompt, str) and isinstance(text, str) and 0 <= step <= last_step:
            found[step, prompt] = text
    # A prompt keeps its place among those of its step.
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [{"step": step, "prompt": prompt, "text": text} for (step, prompt), text in ordered]
