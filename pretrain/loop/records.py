"""metrics.jsonl: one JSON object per logged step, read as far as it makes sense, and written whenever there is room."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pretrain.machine.files import read_regular, replace_text

Record = dict[str, Any]
LARGEST = 1e300
"""Beyond it a figure is none that a run logs, and arithmetic on it overflows."""
MOST_WAITING = 10_000
"""Records that are kept in memory while the disk is full: some megabytes."""


def record_of(line: bytes) -> Record | None:
    """The record that a line of metrics.jsonl holds; None where a kill or a full disk has cut it, or it is no record.

    Figures that are not finite, or no numbers, are null.
    """
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not 0 <= found["step"] < 2**63:
        return None
    with contextlib.suppress(TypeError, OverflowError):  # most lines hold figures and nothing else
        if sum(map(abs, found.values())) < LARGEST:
            return found
    return {key: value if is_figure(value) else None for key, value in found.items()}


def read_records(path: Path) -> tuple[list[Record], list[int], int]:
    """All records in the order of their steps, the numbers of the lines that are none, and the number of all lines.

    OSError where the file cannot be read, or is none.

    Where a step is logged twice, the figures of the later line count.
    """
    steps: dict[int, Record] = {}
    broken, lines = [], read_regular(path).rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        record = record_of(line)
        if record is None:
            broken.append(number)
        elif (known := steps.get(step := record["step"])) is None:
            steps[step] = record
        else:
            steps[step] = known | record
    return [steps[step] for step in sorted(steps)], broken, len(lines)


class RecordFile:
    """The file of a run that goes on after `last_step`: later records in it are of steps that will be made again.

    A record that cannot be written waits in memory for the next one, MOST_WAITING at most; the oldest go first.
    """

    def __init__(self, path: Path, last_step: int):
        self._path, self._last = path, last_step
        self.waiting: list[Record] = []
        self.lost = 0
        self._clean = path.exists() and read_regular(path) == _text(self._written()).encode()

    def put(self, record: Record) -> None:
        """Take a record of the last step or of a later one. `flush` writes it."""
        if self.waiting and self.waiting[-1]["step"] == record["step"]:
            self.waiting[-1] |= record
        else:
            self.waiting.append(record)
        if (excess := len(self.waiting) - MOST_WAITING) > 0:
            del self.waiting[:excess]
            self.lost += excess

    def flush(self) -> None:
        """Write what waits; OSError where that cannot be, and then the file is as it was."""
        if self._clean and self.waiting and self.waiting[0]["step"] > self._last:
            self._append(_text(self.waiting).encode())
        elif self.waiting or not self._clean:
            steps = {record["step"]: record for record in self._written()}
            for record in self.waiting:
                steps[record["step"]] = steps.get(record["step"], {}) | record
            replace_text(self._path, _text(list(steps.values())))
        self._clean = True
        if self.waiting:
            self._last = self.waiting[-1]["step"]
            self.waiting.clear()

    def last(self) -> Record | None:
        """The record of the last step."""
        if self.waiting:
            step = self.waiting[-1]["step"]
            written = self._written()[-1:] if step == self._last else []
            return (written[0] if written and written[0]["step"] == step else {}) | self.waiting[-1]
        written = self._written()
        return written[-1] if written else None

    def _written(self) -> list[Record]:
        """The records of the file that hold."""
        records = read_records(self._path)[0] if self._path.exists() else []
        return [record for record in records if record["step"] <= self._last]

    def _append(self, data: bytes) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            end = os.fstat(file).st_size
            self._clean = False  # until all of it is there: a line that is cut would swallow the next one
            try:
                if end and os.pread(file, 1, end - 1) != b"\n":
                    data = b"\n" + data
                while data:
                    data = data[os.write(file, data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, end)
                    self._clean = True
                raise
        finally:
            os.close(file)


def is_figure(value: object) -> bool:
    """Whether a value is a finite number of a size that arithmetic does not mind."""
    return isinstance(value, int | float) and abs(value) < LARGEST


def _text(records: list[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
