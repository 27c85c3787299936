"""Quote what DeepSpeed's launcher (0.19.8) hands to the shells of other machines through pdsh.

`remote.py environment` prints the lines of a DS_ENV_FILE; `remote.py arguments ARGUMENT …` the arguments, each ended by
a NUL. The launcher puts double quotes around a value with special characters and around an argument with a space, and
escapes nothing in the first and only double quotes in the second; another argument it leaves as it is.
"""

import os
import re
import shlex
import sys
from pathlib import Path

PASSED = re.compile(r"SPARLOW_|(OMP_NUM_THREADS|OMP_WAIT_POLICY|GOMP_SPINCOUNT|DS_ACCELERATOR)$")


def environment() -> str:
    """The variables that a run looks at, after the files that the launcher would read: the caller's DS_ENV_FILE."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    files = [Path.home() / name, Path(name)]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines() if "=" in line]
    own = ((name, value) for name, value in sorted(os.environ.items()) if PASSED.match(name) and "\n" not in value)
    return "".join(
        f"{line}\n" for line in [*lines, *(f"{name}={re.sub(_INSIDE, _ESCAPED, value)}" for name, value in own)]
    )


def argument(text: str) -> str:
    """The argument such that a shell reads it back after what the launcher does to it."""
    return re.sub(r"([\\$`])", _ESCAPED, text) if " " in text else shlex.quote(text)


_INSIDE, _ESCAPED = r'([\\$`"])', r"\\\1"

if __name__ == "__main__":
    if sys.argv[1] == "environment":
        sys.stdout.write(environment())
    else:
        sys.stdout.write("".join(f"{argument(text)}\0" for text in sys.argv[2:]))
