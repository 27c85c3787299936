"""The first look at a corpus: a sample to train the tokenizer on, and where to divide it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from model.errors import UserError
from pretrain.data.documents import Text

SAMPLE_BYTES = 20_000_000


@dataclass
class Survey:
    """What the first look found. `complete` is false when it stopped before the end of the corpus."""

    complete: bool = True
    documents: int = 0
    bytes: int = 0
    lowest: float = 1.0
    """Smallest score of a document."""
    highest: float = 0.0
    sample: list[Text] = field(default_factory=list)
    """Documents spread evenly over what was read, at most SAMPLE_BYTES together."""


def survey(texts: Iterable[Text], whole: bool) -> Survey:
    """Read all of `texts`, or without `whole` only as much as the tokenizer's sample needs."""
    found, stride, kept = Survey(), 1, 0
    for text in texts:
        size = len(text.text.encode())
        if found.documents % stride == 0:
            found.sample.append(text)
            kept += size
        found.documents += 1
        found.bytes += size
        found.lowest, found.highest = min(found.lowest, text.score), max(found.highest, text.score)
        if not whole and found.bytes >= SAMPLE_BYTES:
            found.complete = False
            break
        while kept > SAMPLE_BYTES and len(found.sample) > 1:
            stride *= 2
            found.sample = found.sample[::2]
            kept = sum(len(text.text.encode()) for text in found.sample)
    return found


@dataclass(frozen=True)
class Division:
    """Which text is trained on and which is held out."""

    val_fraction: float
    bound: float
    """Documents with a score below it are held out."""
    by_position: bool
    """The corpus is one document: its beginning is trained on, its end held out."""

    def parts(self, texts: Iterable[Text]) -> Iterator[tuple[str, str]]:
        """("train" or "val", text), in order."""
        for text in texts:
            if self.by_position:
                yield from self._begin_and_end(text.text)
            else:
                yield ("val" if text.score < self.bound else "train"), text.text

    def _begin_and_end(self, text: str) -> Iterator[tuple[str, str]]:
        cut = len(text) - max(1, round(len(text) * self.val_fraction))
        cut = text.find("\n", cut, len(text) - 1) + 1 or cut
        if not text[:cut].strip() or not text[cut:].strip():
            raise UserError("--text: the only document is too short to hold a part of it out; give more text")
        yield "train", text[:cut]
        yield "val", text[cut:]


def division(found: Survey, val_fraction: float) -> Division:
    """Divide by score at `val_fraction`, moved where it would leave one part of a fully read corpus empty."""
    bound = val_fraction
    if found.complete and found.lowest >= val_fraction:
        bound = float(np.nextafter(found.lowest, 1.0))
    elif found.complete:
        bound = min(val_fraction, found.highest)
    return Division(val_fraction, bound, by_position=found.complete and found.documents == 1)
