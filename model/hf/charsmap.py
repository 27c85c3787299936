"""The table of a SentencePiece normaliser (precompiled_charsmap), carried exactly into tokenizer.json.

SentencePiece walks through the text and replaces, at each place, the longest string that has a rule. The tokenizers
library's Precompiled reads the same table but takes the shortest, and of a letter with its marks only that one; its
NFKC orders and composes marks which the table leaves alone. So the text is first cut, by a pattern made of the table,
just where SentencePiece cuts it; then Precompiled sees one character at a time, and NFC composes within the cuts alone.
"""

import base64
import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

CUT, INNER = "\U0010fffe", "\U0010ffff"
"""Marks between two pieces of text and between the characters of one; Unicode keeps them free of characters for good.
Four bytes long, so that Precompiled never looks up a letter together with one of them."""

PLAIN = (
    " -~\xc0-\u024f\u0386-\u0481\u048a-\u052f\u05d0-\u05ea\u0620-\u064a"
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
)
"""Ranges of characters of which none is a mark or joins with the one before it: most of most texts, for speed."""

MAX_EXCEPTIONS = 200
"""Each rule that is not a composition costs a step of its own at every text."""

MOST_VISITS, LONGEST_SOURCE = 2**20, 256
"""Units that a table's rules lead through, and bytes of the longest one: far more than those of any real table."""


class _Rules(NamedTuple):
    single: dict[str, str]
    """What a rule makes of one character."""
    several: dict[str, str]
    """What a rule makes of two or more characters."""
    exceptions: dict[str, str]
    """The part of `several` that composition does not make, or not by every version of Unicode."""


def charsmap_obstacle(charsmap: bytes) -> str | None:
    """The first rule of a table that `charsmap_steps` cannot express, in words."""
    try:
        rules = _rules(charsmap)
    except (ValueError, IndexError):
        return "its table is damaged"
    for source, target in (rules.single | rules.exceptions).items():
        fixed = len(target) == 1 and _composed(target, rules.single) == target
        plain = any(re.match(f"[{PLAIN}]", c) for c in source[1:])
        if unicodedata.normalize("NFC", target) != target or (
            len(source) > 1 and (plain or not fixed or len(rules.exceptions) > MAX_EXCEPTIONS)
        ):
            return f"its rules make {target!a} of {source!a}"
    return None


def charsmap_steps(charsmap: bytes) -> list[dict[str, Any]]:
    """Steps of a tokenizers Sequence that normalise as SentencePiece does with a table without an obstacle."""
    rules = _rules(charsmap)
    # A run of plain letters needs no cuts, save before its last, to which a mark may belong.
    pieces = [rf"[{PLAIN}]+(?=[{PLAIN}]|\z)", "(?m:.)"]
    steps: list[dict[str, Any]] = []
    if rules.several:
        pieces.insert(1, _any_of(frozenset(rules.several)))
        later = _one_of(c for source in rules.several for c in source[1:])
        steps += [replacement(rf"(?<![^{CUT}]){re.escape(a)}(?![^{CUT}])", b) for a, b in rules.exceptions.items()]
        steps.append(replacement(rf"(?<=[^{CUT}])(?={later})", INNER))
    return [
        replacement(rf"(?:{'|'.join(pieces)})\K", CUT),
        *steps,
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii")},
        replacement(INNER, ""),
        {"type": "NFC"},
        replacement(CUT, ""),
    ]


def replacement(pattern: str, content: str, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


@functools.lru_cache(maxsize=2)
def _rules(charsmap: bytes) -> _Rules:
    rules = _decode(charsmap)
    single = {source: target for source, target in rules.items() if len(source) == 1}
    several = {source: target for source, target in rules.items() if len(source) > 1}
    exceptions = {a: b for a, b in several.items() if _composed(a, single) != b or _recent(b)}
    return _Rules(single, several, exceptions)


def _composed(text: str, single: dict[str, str]) -> str:
    return unicodedata.normalize("NFC", "".join(single.get(c, c) for c in text))


def _recent(text: str) -> bool:
    """Whether a character is younger than Unicode 3.2, so that a library with old tables may not compose it."""
    return any(unicodedata.ucd_3_2_0.category(c) == "Cn" for c in text)


def _any_of(strings: frozenset[str]) -> str:
    """A pattern that matches the longest of `strings`, the optional rest of each being tried before it is left out."""
    rests: dict[str, set[str]] = {}
    for string in strings - {""}:
        rests.setdefault(string[0], set()).add(string[1:])
    firsts: dict[frozenset[str], list[str]] = {}
    for first, rest in rests.items():
        firsts.setdefault(frozenset(rest), []).append(first)
    branches = sorted(_one_of(chars) + (_any_of(rest) if rest != {""} else "") for rest, chars in firsts.items())
    return f"(?:{'|'.join(branches)})" + ("?" if "" in strings else "")


def _one_of(characters: Iterable[str]) -> str:
    """A class of characters, neighbours joined to ranges."""
    ranges: list[list[int]] = []
    for code in sorted({ord(c) for c in characters}):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(rf"\x{{{a:x}}}" + (rf"-\x{{{b:x}}}" if b > a else "") for a, b in ranges) + "]"


def _decode(charsmap: bytes) -> dict[str, str]:
    """All rules of a table: a double array (Darts-clone) over UTF-8 bytes, then the targets, each with a NUL after it.

    A unit holds its label, whether a rule ends there, and the distance to the place of its children, which lie at that
    place xor their label. Read level by level, the units having been sorted by the place that they are children of.
    """
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    targets = charsmap[4 + size :]
    places = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))  # of each unit's children
    children = np.flatnonzero((units >> 31 == 0) & (units & 255 > 0))
    parents = children ^ (units[children] & 255)
    order = np.argsort(parents, kind="stable")
    children, parents = children[order], parents[order]
    rules: dict[str, str] = {}
    keys, at, visited = np.zeros((1, 0), dtype=np.uint8), np.zeros(1, dtype=np.int64), 0
    while len(at):
        first, last = np.searchsorted(parents, places[at]), np.searchsorted(parents, places[at], side="right")
        counts = last - first
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        at = children[np.repeat(first, counts) + steps]
        visited += len(at)
        if visited > MOST_VISITS or keys.shape[1] > LONGEST_SOURCE:
            raise ValueError("the table leads in a circle")
        keys = np.concatenate([np.repeat(keys, counts, axis=0), (units[at] & 255).astype(np.uint8)[:, None]], axis=1)
        ends = units[at] >> 8 & 1 == 1
        starts = units[places[at[ends]]] & 0x7FFFFFFF
        for key, start in zip(keys[ends], starts.tolist(), strict=True):
            rules[key.tobytes().decode()] = targets[start : targets.index(b"\0", start)].decode()
    return rules
