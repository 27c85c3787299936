"""Documents: what a source yields, and which of them are fit to train on."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

BOM = b"\xef\xbb\xbf"
MAX_LINE = 10_000_000  # bytes; a longer line is data, not text


class Document(NamedTuple):
    """One document as read. `score` in [0, 1) says where it goes: below the validation fraction means held out."""

    name: str
    raw: bytes
    score: float


class Skipped(NamedTuple):
    """A document, or the rest of a file, that could not be read."""

    name: str
    reason: str


class Text(NamedTuple):
    """One document fit to train on."""

    text: str
    score: float


class Source(Protocol):
    """Where documents come from, in an order that is always the same."""

    complete_survey: bool
    """Whether reading everything once before encoding is cheap (a disk, not a network)."""

    def records(self) -> Iterator[Document | Skipped]: ...

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source: equal for equal inputs, without paths of this machine."""
        ...


@dataclass
class SkipLog:
    """How many documents were left out for each reason, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, skipped: Skipped) -> None:
        self.counts[skipped.reason] = self.counts.get(skipped.reason, 0) + 1
        self.first.setdefault(skipped.reason, printable(skipped.name))

    def copy(self) -> "SkipLog":
        return SkipLog(dict(self.counts), dict(self.first))

    def merged(self, other: "SkipLog") -> "SkipLog":
        """What both tell of, this one first."""
        counts = self.counts | {why: count + self.counts.get(why, 0) for why, count in other.counts.items()}
        return SkipLog(counts, other.first | self.first)

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason} (first: {self.first[reason]})" for reason, count in self.counts.items())


def score(name: str, row: int = 0, buckets: int = 2**32) -> float:
    """A number in [0, 1) that depends on the document's name and row alone."""
    key = name if row == 0 else f"{name}\0{row}"
    return int(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(), 16) % buckets / buckets


def readable(records: Iterable[Document | Skipped], log: SkipLog) -> Iterator[Text]:
    """The documents fit to train on; the others are counted in `log`."""
    for record in records:
        if isinstance(record, Skipped):
            log.add(record)
            continue
        raw = record.raw.removeprefix(BOM)
        if reason := _fault(raw):
            log.add(Skipped(record.name, reason))
            continue
        try:
            yield Text(raw.decode(), record.score)
        except UnicodeDecodeError:
            log.add(Skipped(record.name, "invalid UTF-8"))


def printable(name: str) -> str:
    """A name for JSON and a terminal: what is no character, or would break the line, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _fault(raw: bytes) -> str | None:
    if not raw.strip():
        return "empty"
    if b"\0" in raw:
        return "NUL byte"
    if len(raw) > MAX_LINE and max(map(len, raw.split(b"\n"))) > MAX_LINE:
        return "line over 10 MB"
    return None
