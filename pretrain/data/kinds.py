"""Files that stand where another was meant: what they are, for a message."""

import re

from model.lfs import HEAD, POINTER

_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")


def stand_in(head: bytes) -> str | None:
    """What the beginning of a file shows it to be, with the way out; None where it shows nothing."""
    if head.startswith(HEAD):
        return f"a {POINTER}"
    if _TIKTOKEN.match(head):
        return "a tiktoken file, which SentencePiece cannot read; give a SentencePiece .model or let prepare train one"
    if head.lstrip()[:1] == b"{":
        return "a JSON file (a tokenizer.json?); give the SentencePiece .model or let prepare train one"
    return None
