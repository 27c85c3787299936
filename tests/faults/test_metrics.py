"""metrics.jsonl, TensorBoard and summary.json: broken ones are read as far as they go, full disks cost no line."""

import contextlib
import json
import os
import resource
import signal
import subprocess

import pytest
from support import logged, train_here

from pretrain.cli import main
from pretrain.loop import records
from pretrain.loop.metrics import Metrics
from pretrain.loop.records import read_records
from pretrain.loop.summary import summary_is_current

BROKEN_TAILS = {
    "half a record": b'{"step": 3, "train/lo',
    "half a character": b'{"step": 3, "train/loss": 1.0, "\xe2\x82',
    "infinity for a step": b'{"step": Infinity, "train/loss": 1.0}\n',
    "a step of thousands of digits": b'{"step": ' + b"1" * 5000 + b"}\n",
    "a step beyond 64 bits": b'{"step": ' + b"1" * 400 + b', "train/loss": 1.0}\n',
    "a step below zero": b'{"step": -4, "train/loss": 1.0}\n',
    "a step in words": b'{"step": "three", "train/loss": 1.0}\n',
    "deep nesting": b"[" * 200_000 + b"\n",
    "a deep record": b'{"step": 3, "train/loss": ' + b'{"a":' * 100_000 + b"\n",
    "no object": b'[1, 2]\n"step"\n3\nnull\n',
    "zeros": b"\0" * 4096,
    "a lone surrogate": b'{"step": "\\ud800"}\n',
}
STRANGE_FIGURES = {
    "not finite": b'{"step": 3, "train/loss": NaN, "train/flops": Infinity, "train/tokens_seen": -Infinity}\n',
    "beyond floats": b'{"step": 3, "train/loss": ' + b"1" * 400 + b', "train/tokens_seen": 1e999}\n',
    "lists and texts": b'{"step": 3, "train/loss": [], "train/tokens_seen": {"a": "\\ud800"}, "\\ud800": "x"}\n',
    "a step twice": b'{"step": 2, "train/loss": 2.5}\n',
    "tokens that fall": b'{"step": 3, "train/loss": 2.0, "train/tokens_seen": 0}\n',
    "no figures": b'{"step": 3}\n',
}


def line(step: int) -> str:
    figures = {"train/loss": 3.0 - step / 10, "train/tokens_seen": 10 * step, "train/flops": 100.0 * step}
    return json.dumps({"step": step, **figures}) + "\n"


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(1) + line(2))
    return tmp_path / "metrics.jsonl"


@pytest.mark.fault("F41")
@pytest.mark.parametrize("tail", BROKEN_TAILS)
def test_a_broken_tail_of_the_metrics(logs, tmp_path, tail):
    """The report draws what is there, and a resume goes on behind it."""
    logs.write_bytes(logs.read_bytes() + BROKEN_TAILS[tail])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert (table[0]["step"], table[0]["tokens_seen"]) == (2, 20)
    metrics = Metrics(tmp_path, 2, tensorboard=False, active=True, say=[].append)
    metrics.write(3, {"train/loss": 0.5})
    assert logs.read_text() == line(1) + line(2) + '{"step": 3, "train/loss": 0.5}\n'


@pytest.mark.fault("F41")
@pytest.mark.parametrize("tail", STRANGE_FIGURES)
def test_strange_figures_are_none(logs, tmp_path, tail):
    logs.write_bytes(logs.read_bytes() + STRANGE_FIGURES[tail])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    found, broken, _ = read_records(logs)
    assert ([record["step"] for record in found], broken) == ([1, 2] if "twice" in tail else [1, 2, 3], [])
    Metrics(tmp_path, 3, tensorboard=False, active=True, say=[].append).write(4, {"train/loss": 0.5})
    assert list(logged(tmp_path)) == [record["step"] for record in found if "train/loss" in record] + [4]


@pytest.mark.fault("F41")
@pytest.mark.parametrize("text", [*BROKEN_TAILS.values(), b"", b'{"step": 3, "val_loss": NaN'])
def test_a_broken_summary(logs, tmp_path, text, capsys):
    (tmp_path / "summary.json").write_bytes(text)
    assert not summary_is_current(tmp_path, 3)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("F41")
def test_figures_of_a_summary_of_another_form_are_missing(logs, tmp_path):
    wrong = {"step": 2, "stages": [{"n_layers": "x"}], "growth_stages": [2], "error": {}, "flops": "many", "device": 3}
    (tmp_path / "summary.json").write_text(json.dumps(wrong | {"val_loss": 2.5, "parameters": 10**400}))
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    row = json.loads((tmp_path / "out" / "table.json").read_text())[0]
    assert row["val_loss"] == 2.5
    assert row["stages"] is row["flops"] is row["device"] is row["parameters"] is None


@contextlib.contextmanager
def largest_file(size: int):
    """A kernel's own EFBIG for every write beyond `size`; without root."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, and a function that fills it to the last byte but some."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")

    def fill() -> None:
        with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    yield folder, fill
    subprocess.run(["umount", str(folder)], check=True)


def steps_of(folder) -> list[int]:
    return [json.loads(text)["step"] for text in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {event.step: event.value for event in board.Scalars("train/loss")}


@pytest.mark.fault("F44")
@pytest.mark.fault("F11")
def test_a_disk_that_empties_again_loses_no_line(small_disk, capsys):
    """Neither of metrics.jsonl nor of TensorBoard, and no thread prints a traceback."""
    folder, fill = small_disk
    said: list[str] = []
    metrics = Metrics(folder, 0, tensorboard=True, active=True, say=said.append)
    for step in range(1, 601):
        if step == 300:
            fill()
        if step == 500:
            (folder / "filler").unlink()
        metrics.write(step, {"train/loss": float(step), "x" * 60: 1.0})
    metrics.write(600, {"val/loss": 0.5})
    metrics.close()
    assert steps_of(folder) == list(range(1, 601))
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["val/loss"] == 0.5
    assert {step: value for step, value in scalars(folder / "tensorboard").items() if step > 1} == {
        step: float(step) for step in range(2, 601)
    }
    for what in ("metrics", "TensorBoard's files"):
        told = [text for text in said if text.startswith(what)]
        assert len(told) == 2, said
        assert "cannot be written (OSError: [Errno 28] No space left on device); training goes on" in told[0]
        assert "are written again" in told[1]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("F44")
def test_a_line_that_is_cut_swallows_no_other(tmp_path):
    """A limit in the middle of a line: what is there of it goes, and the line comes whole once it can."""
    said: list[str] = []
    metrics = Metrics(tmp_path, 0, tensorboard=False, active=True, say=said.append)
    metrics.write(1, {"train/loss": 1.0})
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with largest_file(size + 10):
        for step in range(2, 6):
            metrics.write(step, {"train/loss": float(step)})
            assert metrics.has(step, "train/loss")
        metrics.write(5, {"val/loss": 2.0})
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
    assert metrics.has(5, "val/loss")
    metrics.write(6, {"train/loss": 6.0})
    assert list(logged(tmp_path)) == steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert logged(tmp_path, "val/loss") == {5: "2.0"}
    assert len(said) == 2
    assert "metrics are written again, 4 records that were kept meanwhile among them" in said[1]


@pytest.mark.fault("F44")
def test_an_evaluation_for_which_there_was_no_room(tmp_path):
    """It joins its step's record later, also where that is written already."""
    metrics = Metrics(tmp_path, 0, tensorboard=False, active=True, say=[].append)
    metrics.write(1, {"train/loss": 1.0})
    with largest_file(10):
        metrics.write(1, {"val/loss": 2.0})
        metrics.write(2, {"train/loss": 2.0})
    assert not list(tmp_path.glob("*.tmp"))
    assert metrics.has(2, "train/loss")
    metrics.write(3, {"train/loss": 3.0})
    assert steps_of(tmp_path) == [1, 2, 3]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {
        "step": 1, "train/loss": 1.0, "val/loss": 2.0,
    }  # fmt: skip


@pytest.mark.fault("F44")
def test_what_is_kept_is_bounded_and_what_is_lost_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_WAITING", 3)
    said: list[str] = []
    metrics = Metrics(tmp_path, 0, tensorboard=False, active=True, say=said.append)
    with largest_file(0):
        for step in range(1, 8):
            metrics.write(step, {"train/loss": 1.0})
    metrics.write(8, {"train/loss": 1.0})
    assert steps_of(tmp_path) == [6, 7, 8]
    assert said[-1].endswith("kept meanwhile among them, 5 were lost")
    with largest_file(0):
        metrics.write(9, {"train/loss": 1.0})
        metrics.close()
    assert said[-1] == "metrics of 1 logged steps were never written"


@pytest.mark.fault("F44")
def test_a_resume_on_a_full_disk_keeps_what_is_there(logs, tmp_path):
    """Steps that are made again are taken out once there is room, and are never in the file twice."""
    with largest_file(10):
        metrics = Metrics(tmp_path, 1, tensorboard=False, active=True, say=[].append)
        metrics.write(2, {"train/loss": 0.25})
    assert logs.read_text() == line(1) + line(2)
    metrics.write(3, {"train/loss": 0.125})
    assert logged(tmp_path) == {1: "2.9", 2: "0.25", 3: "0.125"}


@pytest.mark.fault("F44")
@pytest.mark.fault("F11")
def test_a_run_whose_disk_is_full_for_a_while(tiny, tmp_path, monkeypatch, capsys):
    """All its figures come: the limit holds from the second step to the fifth."""
    from pretrain.loop import train

    step, run, limit = train.train_step, tmp_path / "run", contextlib.ExitStack()

    def limited(run_, lr):
        if run_.state.step == 1:
            limit.enter_context(largest_file((run / "metrics.jsonl").stat().st_size + 30))
        if run_.state.step == 5:
            limit.close()
        return step(run_, lr)

    monkeypatch.setattr(train, "train_step", limited)
    with limit:
        assert train_here(tiny, "--train.max_steps=8", "--metrics.tensorboard=true", "--checkpoint.every=3") == 0
    assert list(logged(run)) == list(range(1, 9))
    assert sorted(scalars(run / "tensorboard")) == list(range(1, 9))
    out = capsys.readouterr()
    assert "metrics are written again" in out.out
    assert "TensorBoard's files are written again" in out.out
    assert "Traceback" not in out.err
