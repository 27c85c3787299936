"""How long a processor's threads wait for each other awake. Imports nothing heavy: it comes before torch."""

import os

SPINS = "2000"
"""Turns of a loop, some microseconds. PyTorch's OpenMP library (GNU's) would make 300 000 otherwise, and a thread whose
partner's core is taken by another process burns its own for all of them; sleeping at once costs 10 % and more alone."""

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Whoever has set one of them has decided."""


def sleep_while_waiting() -> None:
    """Let threads that wait for others sleep soon, so that one more busy process does not cost a run most of its speed.

    Call before torch is imported: its OpenMP library reads the environment as it is loaded. The setting of a user
    stands. launch/common.sh does the same for whatever the launchers start.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ[VARIABLES[0]] = SPINS


def describe() -> str:
    """Name the settings in force."""
    return ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "their own default"
