"""Work beside training: samples, evaluation, figures. Its failure costs that work and never the run."""

from collections.abc import Callable
from typing import TypeVar

from pretrain.machine.console import Console
from pretrain.machine.distributed import LostConnection, World, together

T = TypeVar("T")


def attempt(world: World, console: Console, what: str, work: Callable[[], T]) -> T | None:
    """Run `work` on every rank; None, and one line that says why, when it fails on any of them.

    `what` is "<when>: <what is missing then>", as in "step 20: samples not made". All ranks give up together; one that
    is gone ends the run. Where `work` communicates, it must itself see to it that all ranks fail at the same exchange,
    as `evaluate` does.
    """
    try:
        return together(world, work)
    except LostConnection:
        raise
    except Exception as error:
        console.say(f"{what} ({reason(error)}); training goes on")
        return None


def reason(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
