"""Seeded mutations for the tests that hand random damage to readers, and the bounds that hold for every case."""

import os
import random
import resource
import time
from collections.abc import Callable

from model.errors import UserError

SLOWEST, MOST_MEMORY = 20.0, 1_000_000
"""Seconds of CPU of one case, kB of memory that all of them add: far more than any takes, far less than a bomb's."""
TOKENS = (
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b"=",
        b",",
        b":",
        b'"',
        b"'",
        b"\n",
        b"\r",
        b"\0",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\xff",
    ),
    *(b"\xe2\x82", b"\xed\xa0\x80", b"NaN", b"Infinity", b"-", b"1e999", b"null", b"true", b"[[", b"]]", b".", b"#"),
    *(b"[" * 3000, b'{"a":' * 3000, b"{a=" * 2000, b"a." * 2000, b"9" * 5000, b"x" * 70_000, b"\xef\xbb\xbf"),
    *(b"18446744073709551616", b"9223372036854775807", b"-9223372036854775809", b"4611686018427387904"),
)


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """`raw` after one to six changes of a bit, a stretch or a token."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                data[at:at] = rng.choice(TOKENS)
            case 3:
                data[at : at + rng.randint(1, 12)] = rng.choice(TOKENS)
            case 4:
                begin = rng.randrange(len(data) + 1)
                data[at:at] = data[begin : begin + rng.randint(1, 200)]
            case 5:
                del data[at:]
    return bytes(data)


def fuzz(name: str, cases: int, case: Callable[[random.Random], None]) -> int:
    """Call `case` so often, with the generator of each; how many of them were refused by a UserError.

    Any other exception fails the test, with the seed of the case.
    """
    seed = int(os.environ.get("SPARLOW_TEST_SEED", "0"))
    print(f"SPARLOW_TEST_SEED={seed}")
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(cases):
        started = time.process_time()
        try:
            case(random.Random(f"{seed} {name} {number}"))
            said = "nothing"
        except UserError as error:
            refused += 1
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{name}, case {number} of seed {seed}: {type(error).__name__}: {error}") from error
        said.encode()
        assert len(said) < 2500, f"{name}, case {number} of seed {seed}: a sentence of {len(said)} characters"
        assert "\n" not in said, f"{name}, case {number} of seed {seed}: {said}"
        assert time.process_time() - started < SLOWEST, f"{name}: case {number} of seed {seed} took long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY
    return refused
