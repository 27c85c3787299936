"""A folder that is replaced: whenever its writer is killed, the old one or the new one is there and whole."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from model.errors import UserError
from model.hf.staging import staged


def write(out: Path, content: str) -> None:
    with staged(out, overwrite=True) as folder:
        (folder / "config.json").write_text(content)
        (folder / "weights").write_text(content)


def content(out: Path) -> set[str]:
    return {(out / name).read_text() for name in ("config.json", "weights")}


def killed(out: Path, point: int) -> int:
    """Status of a process that replaces `out` and dies before its `point`-th step on files."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    steps = 0

    def dying(work):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **options)

        return step

    Path.rename, Path.mkdir, Path.write_text = dying(Path.rename), dying(Path.mkdir), dying(Path.write_text)
    shutil.rmtree, Path.unlink, os.unlink = dying(shutil.rmtree), dying(Path.unlink), dying(os.unlink)
    try:
        write(out, "new")
    finally:
        os._exit(0)


def test_a_kill_at_any_step_leaves_a_whole_folder(tmp_path):
    points = 0
    for point in range(1, 30):
        folder = tmp_path / str(point)
        out = folder / "hf"
        write(out, "old")
        status = killed(out, point)
        if status == 0:
            break
        points = point
        assert status == -signal.SIGKILL
        there = out if out.exists() else folder / "hf.replaced"
        assert content(there) in ({"old"}, {"new"})
        assert {path.name for path in folder.iterdir()} <= {"hf", "hf.partial", "hf.replaced"}
        before = content(there)
        with pytest.raises(UserError, match="exists already"), staged(out, overwrite=False):
            pass
        assert content(out) == before
        write(out, "newer")
        assert (content(out), [path.name for path in folder.iterdir()]) == ({"newer"}, ["hf"])
    assert points >= 8


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_the_old_folder_stays_where_the_new_one_fails(tmp_path, error):
    write(tmp_path / "hf", "old")

    def fail(folder: Path) -> None:
        assert content(tmp_path / "hf") == {"old"}
        (folder / "config.json").write_text("new")
        raise error

    with pytest.raises(type(error)), staged(tmp_path / "hf", overwrite=True) as folder:
        fail(folder)
    assert (content(tmp_path / "hf"), [path.name for path in tmp_path.iterdir()]) == ({"old"}, ["hf"])


def test_two_writers_do_not_meet(tmp_path):
    with staged(tmp_path / "hf", overwrite=False) as folder:
        (folder / "config.json").write_text("first")
        with (
            pytest.raises(UserError, match="another process is writing it"),
            staged(tmp_path / "hf", overwrite=True),
        ):
            pass
    assert (tmp_path / "hf" / "config.json").read_text() == "first"


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    write(tmp_path / "disk" / "hf", "old")
    (tmp_path / "hf").symlink_to(tmp_path / "disk" / "hf")
    write(tmp_path / "hf", "new")
    assert (tmp_path / "hf").is_symlink()
    assert content(tmp_path / "disk" / "hf") == {"new"}


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), staged(tmp_path / "file" / "hf", overwrite=False):
        pass
