"""Sparlow's own modules as processes, whichever folder they are started in."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(module: str, *arguments: str) -> tuple[str, ...]:
    """`python -m module`, but not with the present folder first among those that Python looks for modules in.

    There may be a user's own `model.py`, or another checkout of Sparlow.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def environment() -> dict[str, str]:
    """The present environment, in which a process finds the very sources that this one runs, installed or not."""
    checkout = [str(ROOT)] if (ROOT / "pyproject.toml").is_file() else []  # else it is among what is installed
    paths = [*checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(os.environ) | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
