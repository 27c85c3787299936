"""Signals to `sparlow prepare`, while SentencePiece's trainer holds the interpreter too: it ends at once."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from processes import run_command, start_command

from model.errors import RunFailed
from pretrain.machine.child import in_child

SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGINT)]


@pytest.mark.fault("F14")
@pytest.mark.parametrize("number", [signal.SIGTERM, *SLOW])
def test_a_signal_while_the_tokenizer_trains(tmp_path, number):
    """The trainer is stopped, so that it would never end by itself."""
    out = tmp_path / "out"
    command = prepare_command(tmp_path)
    process = start_command(*command, fault="prepare_tokenizer", SPARLOW_FAULT_SIGNAL="SIGSTOP")
    trainer = stopped_child(process.pid)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    assert not out.exists()
    assert not trainer.is_running()
    assert run_command(*command)[0] == 0


@pytest.mark.fault("F14")
def test_a_killed_prepare_takes_its_trainer_with_it(tmp_path):
    process = start_command(*prepare_command(tmp_path), fault="prepare_tokenizer", SPARLOW_FAULT_SIGNAL="SIGSTOP")
    trainer = stopped_child(process.pid)
    process.kill()
    trainer.wait(20)


def test_work_in_a_child_returns_raises_or_is_said_to_be_killed():
    here = os.getpid()
    assert in_child("work", os.getpid) != here
    with pytest.raises(KeyError, match="what was raised"):
        in_child("work", lambda: {}["what was raised"])
    with pytest.raises(RunFailed, match=r"^work was killed \(signal 9\): is there too little memory"):
        in_child("work", lambda: os.kill(os.getpid(), signal.SIGKILL))


def prepare_command(folder: Path) -> list[str]:
    """Prepare sixty short texts in `folder` into `folder / "out"`."""
    (folder / "text").mkdir()
    for index in range(60):
        (folder / "text" / f"{index}.txt").write_text(f"some words and some more of them, {index}\n" * 4)
    return ["prepare", "--text", str(folder / "text"), "--out", str(folder / "out"), "--vocab-size", "290"]


def stopped_child(pid: int) -> psutil.Process:
    for _ in range(1200):
        for child in psutil.Process(pid).children():
            if child.status() == psutil.STATUS_STOPPED:
                return child
        time.sleep(0.05)
    raise AssertionError("no child that is stopped")
