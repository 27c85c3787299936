"""Saves while training goes on: what is saved, what a failure costs, and who waits for whom.

Nothing here depends on who is faster: where it matters, the thread that writes is held until training is where it
should be.
"""

import os
import re
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from processes import Process, run_command, train_world, wait_until
from support import logged, tensor_hashes, train_here

from model.errors import RunFailed
from pretrain.checkpoint import save, writing
from pretrain.checkpoint.saver import Saver
from pretrain.loop import train

BACK, FRONT = "--checkpoint.background=true", "--checkpoint.background=false"
EVERY_2 = ["--train.max_steps=6", "--checkpoint.every=2", "--checkpoint.keep=9"]
ENGINES = {
    "adamw": [],
    "stage 1": ["--parallel.zero_stage=1", "--train.dtype=bf16"],
    "stage 3": ["--parallel.zero_stage=3"],
    "galore": [
        "--linear.name=dense",
        "--optimizer.name=galore_adamw",
        "--optimizer.rank=4",
        "--optimizer.update_proj_gap=2",
    ],
    "8-bit, per layer": [
        *("--optimizer.name=adamw8bit", "--optimizer.update=per_layer", "--train.grad_clip=0.0"),
        "--train.global_batch_size=2",
    ],
}


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name not in ("lock", "latest"))


@pytest.fixture
def held(monkeypatch):
    """The thread of a save begins to read its copies only when another two steps have been made, or the run waits."""
    steps, run = threading.Condition(), writing.Writing.run
    made = [0]

    def steps_made(by: int) -> None:
        with steps:
            made[0] += by
            steps.notify_all()

    def wait_for_steps(self):
        begun = made[0]
        with steps:
            assert steps.wait_for(lambda: made[0] >= begun + 2, 60)
        return run(self)

    def step(*arguments, train_step=train.train_step):
        found = train_step(*arguments)
        steps_made(1)
        return found

    def waits(wait):
        return lambda *arguments, **options: (steps_made(100), wait(*arguments, **options))[1]

    monkeypatch.setattr(writing.Writing, "run", wait_for_steps)
    monkeypatch.setattr(train, "train_step", step)
    for name in ("finish", "close"):
        monkeypatch.setattr(Saver, name, waits(getattr(Saver, name)))


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("stage 1", "stage 3", "galore") else [])
        for name in ENGINES
    ],
)
def test_what_is_saved_is_the_step_of_the_copy(tiny, tmp_path, held, engine):
    """Bit by bit what a save saves that training waits for, though two more steps are made before anything is read."""
    for mode in (BACK, FRONT):
        options = ["--train.max_steps=7", "--checkpoint.every=3", f"--run.dir={tmp_path}/{mode}"]
        train_here(tiny, *ENGINES[engine], *options, mode)
    for step in (3, 6, 7):
        assert tensor_hashes(tmp_path / BACK, step) == tensor_hashes(tmp_path / FRONT, step)
        state = [tmp_path / mode / "checkpoints" / f"step-{step:08d}" / "state.json" for mode in (BACK, FRONT)]
        seconds = re.compile(r'"train_seconds": [\d.]+')
        assert seconds.sub("", state[0].read_text()) == seconds.sub("", state[1].read_text())


@pytest.mark.slow
def test_every_rank_writes_its_files(tiny, tmp_path):
    """Two processes, with files so small that both write some; the world's script compares their weights too."""
    runs = [[*EVERY_2, f"--run.dir={tmp_path}/{mode}", mode] for mode in (BACK, FRONT)]
    train_world(2, tiny, runs)
    for step in (2, 4, 6):
        hashes = tensor_hashes(tmp_path / BACK, step)
        assert len(hashes) > 3
        assert hashes == tensor_hashes(tmp_path / FRONT, step)


@pytest.mark.fault("F11")
@pytest.mark.parametrize("mode", [BACK, FRONT])
def test_a_disk_that_is_full_and_empties_again(tiny, tmp_path, monkeypatch, capsys, mode):
    """No file may grow beyond 40 kB: the kernel's own error, until the third save."""
    limits, begin = resource.getrlimit(resource.RLIMIT_FSIZE), Saver.save

    def saves(saver, state, tensors):
        if state.step == 6:
            saver.finish()
            assert folders(tmp_path / "run") == []
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        begin(saver, state, tensors)

    monkeypatch.setattr(Saver, "save", saves)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        assert train_here(tiny, *EVERY_2, "--train.max_steps=7", mode) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    output = capsys.readouterr().out
    sentence = r"step +(\d): CHECKPOINT NOT WRITTEN \(.*File too large.*\); older ones are untouched, training goes on"
    assert re.findall(sentence, output) == ["2", "4"]
    assert folders(tmp_path / "run") == ["step-00000006", "step-00000007"]


@pytest.mark.fault("F11")
def test_a_failed_save_is_told_at_once_and_leaves_the_older_one(tiny, tmp_path, monkeypatch, capsys):
    write, told = save.write_tensors, []

    def full(path, tensors):
        if path.parent.name.startswith("step-00000004"):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write(path, tensors)

    def step(run, lr, train_step=train.train_step):
        if run.state.step == 5:
            run.saver._writing.join()
            told.append("step 4: CHECKPOINT NOT WRITTEN ([Errno 28] No space" in capsys.readouterr().out)
        return train_step(run, lr)

    monkeypatch.setattr(save, "write_tensors", full)
    monkeypatch.setattr(train, "train_step", step)
    assert train_here(tiny, *EVERY_2) == 0
    assert told == [True]
    assert folders(tmp_path / "run") == ["step-00000002", "step-00000006"]


@pytest.mark.parametrize("mode", [BACK, FRONT])
def test_an_error_of_this_program_ends_the_run_with_a_sentence(tiny, tmp_path, monkeypatch, mode):
    def broken(path, tensors):
        raise ValueError("broken\nin more lines")

    monkeypatch.setattr(save, "write_tensors", broken)
    with pytest.raises(RunFailed, match=r"^the checkpoint of step 2 could not be written \(ValueError: broken\)$"):
        train_here(tiny, *EVERY_2, mode)
    assert folders(tmp_path / "run") == []


@pytest.mark.fault("F11")
def test_a_run_whose_last_save_failed_in_the_background_says_so(tiny, monkeypatch, capsys):
    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_tensors", full)
    with pytest.raises(RunFailed, match="last checkpoint could not be written"):
        train_here(tiny, "--train.max_steps=2", BACK)
    assert "step 2: CHECKPOINT NOT WRITTEN" in capsys.readouterr().out


def test_an_error_of_training_waits_for_the_save(tiny, tmp_path, monkeypatch, held):
    def step(run, lr, train_step=train.train_step):
        if run.state.step == 3:
            assert folders(tmp_path / "run")[0].startswith("step-00000002.tmp.")
            raise RunFailed("broken")
        return train_step(run, lr)

    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(RunFailed, match=r"^broken$"):
        train_here(tiny, *EVERY_2)
    assert folders(tmp_path / "run") == ["step-00000002"]


def test_pruning_comes_after_the_commit(tiny, tmp_path, monkeypatch, held):
    """While a save is on its way, the one before it is kept, whatever checkpoint.keep is."""
    seen = {}

    def step(run, lr, train_step=train.train_step):
        if run.state.step in (4, 5):
            seen[run.state.step] = folders(tmp_path / "run")
        return train_step(run, lr)

    monkeypatch.setattr(train, "train_step", step)
    train_here(tiny, *EVERY_2, "--checkpoint.keep=1")
    assert [name.partition(".")[0] for name in seen[4]] == ["step-00000002", "step-00000004"]
    assert folders(tmp_path / "run") == ["step-00000006"]


def test_without_room_for_a_copy_training_waits_and_says_so(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pretrain.memory_plan.copies.host_bytes", lambda: 2**20)
    monkeypatch.setattr("pretrain.checkpoint.saver.Writing", None)
    assert train_here(tiny, "--train.max_steps=2") == 0
    sentence = r"checkpoints are written while training waits: a copy of one takes 0\.\d MiB, the run .* 1 MiB \(check"
    assert re.search(sentence, capsys.readouterr().out)
    assert folders(tmp_path / "run") == ["step-00000002"]


def test_memory_that_cannot_be_had_is_no_failure(tiny, tmp_path, monkeypatch, capsys):
    def none(copies, size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("pretrain.checkpoint.host_copies.HostCopies.reserve", none)
    assert train_here(tiny, "--train.max_steps=2") == 0
    said = "while training waits: there is no memory for a copy of one (OSError: [Errno 12] Cannot allocate memory)"
    assert said in capsys.readouterr().out
    assert folders(tmp_path / "run") == ["step-00000002"]


POINTS = ["copied:2", "shard:2", "mid_file:6", "before_manifest:2", "before_rename:2", "before_latest:2", "prune:1"]


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    from support import write_tiny

    run = tmp_path_factory.mktemp("undisturbed")
    train_here(write_tiny(run, corpus), "--train.max_steps=12", BACK)
    return tensor_hashes(run / "run", 12), logged(run / "run")


@pytest.mark.slow
@pytest.mark.fault("F3")
@pytest.mark.parametrize("mode", [BACK, FRONT])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_point_of_a_save(tiny, tmp_path, undisturbed, point, mode):
    if (point, mode) == ("copied:2", FRONT):
        return
    options = ["train", str(tiny), "--train.max_steps=12", "--checkpoint.every=4", "--checkpoint.keep=1", mode]
    status, output = run_command(*options, fault=point)
    assert status == -signal.SIGKILL, output
    train_here(tiny, *options[2:])
    assert (tensor_hashes(tmp_path / "run", 12), logged(tmp_path / "run")) == undisturbed
    assert folders(tmp_path / "run") == ["step-00000012"]


SLOW_DISK = str(Path(__file__).with_name("slow_disk.py"))


@pytest.mark.fault("F16")
def test_a_second_signal_while_a_save_is_on_its_way(tiny, tmp_path, capsys):
    """The second save of the script never ends. The first signal asks to stop and waits for it, the second kills."""
    process = Process(SLOW_DISK, "train", str(tiny), *EVERY_2, "--train.max_steps=40")
    wait_until(process, lambda: (tmp_path / "run" / "never ends").exists())
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)  # within two seconds a signal is taken for an echo of the first
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) not in (0, 1, 2)
    assert folders(tmp_path / "run")[0] == "step-00000002"
    assert train_here(tiny, *EVERY_2) == 0
    assert "resuming" in (said := capsys.readouterr().out)
    assert "at step 2 (" in said
    assert folders(tmp_path / "run") == ["step-00000002", "step-00000004", "step-00000006"]


@pytest.mark.slow
@pytest.mark.fault("F32")
def test_memory_and_files_stay_flat(tiny, monkeypatch):
    """Over 300 saves in the background."""
    seen = []

    def step(run, lr, train_step=train.train_step):
        if run.state.step % 100 == 50:
            run.saver.finish()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            threads = [thread.name for thread in threading.enumerate()]
            seen.append((pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")), threads.count("checkpoint")))
        return train_step(run, lr)

    monkeypatch.setattr(train, "train_step", step)
    options = ["--train.max_steps=352", "--schedule.total_steps=352", "--checkpoint.every=1", "--checkpoint.keep=2"]
    assert train_here(tiny, *options, "--train.global_batch_size=2", "--metrics.every=100") == 0
    (_, files, _), (memory, *_), *_, (memory_at_end, files_at_end, threads) = seen
    assert memory_at_end - memory < 20e6
    assert (files_at_end, threads) == (files, 0)
