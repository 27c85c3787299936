"""A terminal or pipe that goes away: training stops with a checkpoint or goes on; other commands end quietly."""

import os
import re
import signal
import subprocess
import sys

import pytest
from processes import Process, start_command, wait_for_step
from shell import PREFIX
from support import ROOT, tensor_hashes, train_here

from pretrain.machine import stop

STEPS = "--train.max_steps=24"


@pytest.fixture(autouse=True)
def hangs_up():
    """SIGHUP does what it does by itself, also where the tests run under nohup."""
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, inherited)


def stopped_at(output: str) -> int:
    found = re.search(r"stopped at step (\d+) with a checkpoint", output)
    assert found, output
    return int(found[1])


def start_torchrun(tiny, *prefix: str) -> subprocess.Popen[str]:
    command = [*prefix, "bash", str(ROOT / "launch" / "torchrun.sh"), str(tiny), "--train.max_steps=60"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "NPROC": "1", "VIRTUAL_ENV": str(PREFIX)}
    env.pop("CONDA_PREFIX", None)
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.fault("F14")
def test_sighup_saves(tiny, tmp_path):
    process = start_command("train", str(tiny), "--train.micro_batch_size=1")
    wait_for_step(process, tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert tensor_hashes(tmp_path / "run", stopped_at(output))


@pytest.mark.fault("F14")
def test_sighup_to_the_launcher_saves(tiny, tmp_path):
    process = start_torchrun(tiny)
    wait_for_step(process, tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert tensor_hashes(tmp_path / "run", stopped_at(output))


def test_sighup_does_not_matter_under_nohup(tiny, tmp_path):
    command = ["nohup", sys.executable, "-m", "pretrain", "train", str(tiny), STEPS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(process, tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert tensor_hashes(tmp_path / "run", 24)


@pytest.mark.slow
def test_sighup_to_the_launcher_does_not_matter_under_nohup(tiny, tmp_path):
    process = start_torchrun(tiny, "nohup")
    wait_for_step(process, tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert tensor_hashes(tmp_path / "run", 60)


@pytest.mark.fault("F16")
def test_a_closed_terminal_never_kills_whatever_came_before(monkeypatch):
    killed: list[int] = []
    clock = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stop, "end", lambda sentence, status: killed.append(status))
    handlers = {}
    monkeypatch.setattr(stop.signal, "signal", handlers.__setitem__)
    stop.listen()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGHUP):
        assert number in handlers
        stop.told(number)
        clock[0] += 10.0
    assert stop.asked()
    assert not killed
    stop.listen()
    stop.told(signal.SIGHUP)
    assert stop.asked()
    clock[0] += 10.0
    stop.told(signal.SIGTERM)  # the first that kills is the second of these
    assert not killed
    stop.listen()


def test_training_outlives_its_reader(tiny, tmp_path):
    """`train | head -1`: all steps are made, logged and committed."""
    with (tmp_path / "errors").open("w") as stderr:
        process = Process("-m", "pretrain", "train", str(tiny), STEPS, stderr=stderr.fileno())
    process.stdout.readline()
    process.stdout.close()
    status, errors = process.wait(), (tmp_path / "errors").read_text()
    assert status == 0, errors
    assert "Traceback" not in errors
    assert errors.count("standard output is closed") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 24
    assert tensor_hashes(tmp_path / "run", 24)


def test_training_outlives_its_terminal(tiny, tmp_path):
    """A pseudo-terminal that closes without a signal, as after `disown`: writing to it fails with EIO."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "pretrain", "train", str(tiny), STEPS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=slave, stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(slave)
    os.read(master, 1)
    os.close(master)
    assert process.wait(timeout=120) == 0
    assert tensor_hashes(tmp_path / "run", 24)


def test_training_outlives_a_log_on_a_full_disk(tiny, tmp_path):
    with open("/dev/full", "w") as full, (tmp_path / "errors").open("w") as stderr:
        command = ["-m", "pretrain", "train", str(tiny), "--train.max_steps=2"]
        Process(*command, stdout=full.fileno(), stderr=stderr.fileno()).wait()
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert tensor_hashes(tmp_path / "run", 2)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    from support import write_tiny

    folder = tmp_path_factory.mktemp("finished")
    train_here(write_tiny(folder, corpus), "--train.max_steps=1")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "{}/tiny.toml"],
        ["train", "--print-config"],
        ["sample", "{}/run", "--tokens=2"],
        ["eval", "{}/run", "--tokens=16"],
        pytest.param(["doctor"], marks=pytest.mark.slow),
        ["--help"],
        ["report", "{}/run"],
    ],
)
def test_other_commands_end_quietly(finished, tmp_path, arguments):
    """Nobody reads, from the beginning: no traceback, and the status that a program has whom SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    command = ["-m", "pretrain", *(text.format(finished) for text in arguments)]
    with (tmp_path / "errors").open("w") as stderr:
        status = Process(*command, stdout=write, stderr=stderr.fileno()).wait()
    os.close(write)
    errors = (tmp_path / "errors").read_text()
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert status == (0 if arguments == ["--help"] else 141)  # argparse ignores the error itself


def test_an_encoding_that_lacks_a_character_ends_nothing(capsys, monkeypatch):
    import io

    from pretrain.machine.console import Console

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console = Console(active=True)
    console.say("dæmon")
    console.say("after it")
    assert raw.getvalue() == b"d\\xe6mon\nafter it\n"
