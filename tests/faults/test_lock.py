"""Two processes on one run folder, with the kernel's locks and on file systems that have none; real ones, killed."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import Process

from model.errors import UserError
from pretrain.checkpoint import lock
from pretrain.checkpoint.store import CheckpointStore

SCRIPT = str(Path(__file__).with_name("holds_lock.py"))
KINDS = pytest.mark.parametrize("kind", ["flock", "no-flock"])


def holder(run: Path, *kinds: str) -> tuple[Process, str]:
    """A process that has tried to take the lock, and the first thing it said."""
    process = Process(SCRIPT, str(run), *kinds)
    return process, process.stdout.readline().strip()


@pytest.fixture
def here(monkeypatch, request):
    """No flock in this process either, where the test is of that kind."""
    if request.node.callspec.params["kind"] == "no-flock":
        no_flock(monkeypatch, errno.ENOTSUP)


def no_flock(monkeypatch, number: int) -> None:
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)


@pytest.mark.fault("F30")
@KINDS
def test_the_second_is_refused_and_a_kill_frees_the_folder(tmp_path, here, kind):
    process, said = holder(tmp_path, kind)
    assert said == "taken"
    with pytest.raises(UserError, match=f"is in use by process {process.pid} on {socket.gethostname()}; wait"):
        CheckpointStore(tmp_path).lock()
    process.kill()
    process.wait()
    store = CheckpointStore(tmp_path)
    store.lock()
    other, said = holder(tmp_path, kind)
    assert f"in use by process {os.getpid()}" in said
    assert other.wait() == 2
    store.unlock()
    process, said = holder(tmp_path, kind, "ends")
    assert (said, process.wait()) == ("taken", 0)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["lock"], "what is taken away by whoever ends well"


@pytest.mark.fault("F30")
@KINDS
def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path, here, kind):
    """As of a worker that torchrun has killed and starts anew."""
    process, said = holder(tmp_path, kind, "children")
    assert said == "taken"
    time.sleep(0.2)
    process.kill()
    process.wait()
    CheckpointStore(tmp_path).lock()


@pytest.mark.fault("F30")
@pytest.mark.fault("F17")
@KINDS
def test_a_dead_worker_that_nobody_has_buried_yet(tmp_path, here, kind):
    """Its number is still taken: os.kill(pid, 0) finds it."""
    folder = tmp_path / "checkpoints"
    child = os.fork()
    if not child:
        CheckpointStore(tmp_path).lock()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        os.kill(child, 0)
        assert json.loads((folder / ("lock" if kind == "flock" else "lock.owner")).read_text())["pid"] == child
        CheckpointStore(tmp_path).lock()
    finally:
        os.waitpid(child, 0)


OWNERS = {
    "another start of the machine": ({"boot": "elsewhen"}, True),
    "a number that is another's by now": ({"started": "1"}, True),
    "a number that is nobody's": ({"pid": 2**22 + 1}, True),
    "another machine": ({"host": "elsewhere"}, False),
    "another container": ({"space": "pid:[1]"}, False),
    "this very process": ({}, False),
}


@pytest.mark.fault("F30")
@pytest.mark.parametrize("owner", OWNERS)
def test_whose_file_counts_without_flock(tmp_path, monkeypatch, owner):
    no_flock(monkeypatch, errno.ENOSYS)
    changes, stale = OWNERS[owner]
    path = tmp_path / "checkpoints" / "lock.owner"
    path.parent.mkdir()
    path.write_text(json.dumps(lock._this_process() | changes))
    if stale:
        CheckpointStore(tmp_path).lock()
        assert json.loads(path.read_text())["pid"] == os.getpid()
        return
    with pytest.raises(UserError, match=f"if you know that it has ended, delete {path}$"):
        CheckpointStore(tmp_path).lock()
    path.unlink()
    CheckpointStore(tmp_path).lock()


@pytest.mark.fault("F30")
@pytest.mark.parametrize("content", ["", "garbage", "[]", '{"pid": -1}', "{" * 10_000])
def test_a_file_without_an_owner_is_of_one_killed_before_it_wrote(tmp_path, monkeypatch, content):
    no_flock(monkeypatch, errno.EINVAL)
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "lock.owner").write_text(content)
    CheckpointStore(tmp_path).lock()


@pytest.mark.fault("F30")
@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOLCK])
def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch, number):
    no_flock(monkeypatch, number)
    store = CheckpointStore(tmp_path)
    store.lock()
    assert (store.folder / "lock.owner").exists()
    store.unlock()
    assert not (store.folder / "lock.owner").exists()


@pytest.mark.fault("F8")
def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "lock").symlink_to(outside)
    with pytest.raises(UserError, match=r"run\.dir: .* cannot be written"):
        CheckpointStore(tmp_path / "run").lock()
    assert outside.read_text() == "precious"
