"""Run by test_agreement.py in place of `python -m pretrain`: one rank fails at the second call of one function.

FAILS is "<rank> <module> <dotted name> <kind>". Kinds: those of ERRORS.
"""

import functools
import importlib
import os
import sys

from model.errors import UserError
from pretrain.cli import main


class Stubborn(Exception):
    """An error that cannot be made from what it says, so that pickle cannot read it back."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


ERRORS = {
    "user": UserError("broken on one rank; mend it"),
    "program": ValueError("broken on one rank"),
    "disk": OSError(5, "broken on one rank"),
    "stubborn": Stubborn("broken on", "one rank"),
}


def broken_at_second_call(function, error):
    calls = []

    @functools.wraps(function)
    def broken(*arguments, **keywords):
        calls.append(1)
        if len(calls) == int(os.environ.get("CALL", "2")):
            raise error
        return function(*arguments, **keywords)

    return broken


rank, module, name, kind = os.environ["FAILS"].split()
if rank == os.environ["RANK"]:
    *parents, last = name.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    setattr(owner, last, broken_at_second_call(getattr(owner, last), ERRORS[kind]))
sys.exit(main())
