"""Standard output that may go away: a pipe whose reader ends, a terminal that is closed, a log on a full disk."""

import contextlib
import errno
import os
import select
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What writing fails with when nobody will ever read it again: a closed pipe, a closed terminal, a closed file."""


def failure(stream: TextIO | None) -> OSError | None:
    """Why what `stream` holds back cannot be written, where it cannot."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        return error
    except ValueError:  # closed in this process
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    # A write that has failed leaves nothing to flush, but the pipe still tells.
    with contextlib.suppress(OSError, ValueError):
        pipe = select.poll()
        pipe.register(stream.fileno() if stream is not None else -1, 0)
        if pipe.poll(0):
            return OSError(errno.EPIPE, os.strerror(errno.EPIPE))
    return None


def mute(stream: TextIO | None) -> None:
    """Let everything that is still written to `stream`, also by others and at exit, vanish without an error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Output:
    """sys.stdout for a program that goes on without it: no write fails, and once nobody reads, all of it is muted."""

    def __init__(self) -> None:
        # While a bar is shown, rich puts a stand-in into sys.stdout, which writes to this object.
        self._stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def write(self, text: str) -> int:
        self._tolerate("write", text)
        return len(text)

    def flush(self) -> None:
        self._tolerate("flush")

    def _tolerate(self, name: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, name)(*arguments)
        except UnicodeEncodeError:  # a sample in a script that the terminal's encoding lacks
            self._tolerate(name, *(text.encode("ascii", "backslashreplace").decode() for text in arguments))
        except (OSError, ValueError) as error:
            if getattr(error, "errno", errno.EBADF) in GONE:
                mute(self._stream)
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    print(f"standard output is closed ({error}); going on without it", file=sys.stderr, flush=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
