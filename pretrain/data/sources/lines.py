"""Lines of files of any size, in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO

from pretrain.data.documents import MAX_LINE

CHUNK_BYTES = 1 << 20


def lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines with their ends; None stands for one that is too long.

    A line ends with LF, or with CR in a file without LF (one that an old Macintosh wrote).
    """
    line = stream.readline(MAX_LINE + 1)
    if not line.endswith(b"\n") and b"\r" in line:
        yield from _carriage_returns(line, stream)
        return
    while line:
        if len(line) <= MAX_LINE:
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
            yield None
        line = stream.readline(MAX_LINE + 1)


def _carriage_returns(rest: bytes, stream: BinaryIO) -> Iterator[bytes | None]:
    long = False
    while True:
        *whole, rest = rest.split(b"\r")
        for line in whole:
            yield None if long or len(line) >= MAX_LINE else line + b"\r"
            long = False
        if len(rest) > MAX_LINE:
            long, rest = True, b""
        chunk = stream.read(CHUNK_BYTES)
        if not chunk:
            break
        rest += chunk
    if rest or long:
        yield None if long else rest
