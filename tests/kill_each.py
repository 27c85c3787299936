"""Kills a command before each change that it makes to the disk, one after the other, each time in a fresh folder.

Run by `killed_at_every_change` as `python kill_each.py BEFORE FOLDER ARGUMENTS [failing]`: FOLDER/1, FOLDER/2, ... are
copies of BEFORE at first, and a fork of this process runs `sparlow` there until it is killed; in the last one it came
through.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from processes import Process

from model.errors import RunFailed
from pretrain.cli import main
from pretrain.using import export as exporting

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def killed_at_every_change(before: Path, folder: Path, *arguments: str, failing: bool = False) -> list[Path]:
    """The folders that the kills have left; in `arguments`, "{}" stands for the folder.

    Where `failing`, the check of an export fails.
    """
    process = Process(__file__, str(before), str(folder), json.dumps(arguments), *["failing"] * failing)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == failing, output
    *killed, whole = sorted(folder.iterdir(), key=lambda path: int(path.name))
    assert len(killed) > 5
    shutil.rmtree(whole)
    return killed


def kill_before(number: int, root: Path) -> None:
    """Let this process be killed when it is about to make its change `number` of what is below `root`."""
    count = itertools.count(1)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR) and _below(arguments[0], root)
        else:  # a name that is relative to an open folder comes from shutil.rmtree
            changes = event in CHANGES and (_below(arguments[0], root) or arguments[-1] not in (-1, None))
        if changes and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def _below(path: Any, root: Path) -> bool:
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(f"{root}/")


def _fail(*_: Any) -> NoReturn:
    raise RunFailed("the folder is not the model")


def _main() -> int:
    before, folder, arguments = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    if sys.argv[4:] == ["failing"]:
        exporting._check = _fail
    sys.modules["transformers"] = None  # type: ignore[assignment] - not installed, as far as this command knows
    for number in itertools.count(1):
        root = folder / str(number)
        shutil.copytree(before, root)
        child = os.fork()
        if not child:
            kill_before(number, root)
            status = main([argument.replace("{}", str(root)) for argument in arguments])
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            return status
    raise AssertionError


if __name__ == "__main__":
    sys.exit(_main())
