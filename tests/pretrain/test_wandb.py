"""The mirror of a run in wandb: what it is given, and that nothing it does stops a run, or makes one wait."""

import atexit
import json
import os
import subprocess
import sys
import threading
import types

import pytest
from support import ROOT, logged, train_here

from model.errors import UserError
from pretrain.loop import mirror


class FakeRun:
    """Remembers what it is given."""

    url, dir, offline = "nowhere", "somewhere", True

    def __init__(self):
        self.logs, self.summary, self.metrics, self.finished = [], {}, {}, False

    def define_metric(self, name, **options):
        self.metrics[name] = options

    def log(self, figures):
        self.logs.append(figures)

    def finish(self):
        self.finished = True


@pytest.fixture
def fake(monkeypatch):
    """A module in wandb's place; `runs` are those begun, with what they were begun with."""
    module = types.ModuleType("wandb")
    module.runs = []
    module.hook = lambda: None

    def init(**options):
        atexit.register(module.hook)
        module.runs.append((FakeRun(), options))
        return module.runs[-1][0]

    module.init, module.Settings, module.Html = init, dict, lambda page: page
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_and_its_resume_are_one_run_of_their_own_steps(tiny, tmp_path, fake):
    settings = ["--metrics.wandb=project", "--eval.every=2", '--eval.prompts=["<b>"]', "--schedule.total_steps=4"]
    train_here(tiny, *settings, "--train.max_steps=2")
    train_here(tiny, *settings)
    (first, began), (second, again) = fake.runs
    assert began["id"] == again["id"] == json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    assert (began["project"], began["name"], began["config"]["model"]["dim"]) == ("project", "run", 32)
    assert first.metrics["*"] == {"step_metric": "step"}
    steps = [figures["step"] for run in (first, second) for figures in run.logs if "train/loss" in figures]
    assert steps == [1, 2, 3, 4]
    losses = [repr(figures["train/loss"]) for run in (first, second) for figures in run.logs if "train/loss" in figures]
    assert losses == list(logged(tmp_path / "run").values())
    texts = [figures["samples/<b>"] for figures in second.logs if "samples/<b>" in figures]
    assert texts
    assert texts[0].startswith("<pre>&lt;b&gt;")
    assert second.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert first.finished
    assert second.finished


@pytest.mark.parametrize("where", ["init", "log", "finish", "summary"])
def test_an_error_of_wandb_is_a_line_and_no_more(tiny, tmp_path, fake, monkeypatch, where, capsys):
    def fails(*_, **__):
        raise RuntimeError("broken")

    if where == "init":
        monkeypatch.setattr(fake, "init", fails)
    elif where == "summary":
        monkeypatch.setattr(FakeRun, "summary", property(fails, lambda self, value: None), raising=False)
    else:
        monkeypatch.setattr(FakeRun, where, fails)
    assert train_here(tiny, "--metrics.wandb=project", "--train.max_steps=3") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "RuntimeError: broken" in line]
    assert len(told) == 1
    assert "wandb" in told[0]
    assert len(logged(tmp_path / "run")) == 3


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_wandb_that_hangs_makes_no_run_wait(tiny, tmp_path, fake, monkeypatch, where, capsys):
    """But for its last seconds."""
    released = threading.Event()
    forgotten: list[object] = []
    monkeypatch.setattr(mirror, "CLOSE_S", 0.1)
    monkeypatch.setattr(atexit, "unregister", forgotten.append)
    monkeypatch.setattr(*((fake, "init") if where == "init" else (FakeRun, where)), lambda *_, **__: released.wait(60))
    try:
        assert train_here(tiny, "--metrics.wandb=project", "--train.max_steps=3") == 0
    finally:
        released.set()
    assert forgotten == ([] if where == "init" else [fake.hook])
    assert "wandb has not finished in 0 s; the run ends without it" in capsys.readouterr().out
    assert len(logged(tmp_path / "run")) == 3


def test_without_wandb_a_mirror_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'metrics.wandb = "project" needs the package wandb.*pip install wandb'):
        train_here(tiny, "--metrics.wandb=project")
    assert not (tmp_path / "run").exists()


def test_wandb_is_imported_by_the_mirror_alone():
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("kernels", "model", "pretrain")
        for path in (ROOT / package).rglob("*.py")
        if "import wandb" in path.read_text()
    ]
    assert found == ["pretrain/loop/mirror.py"]


def test_a_run_without_a_mirror_imports_no_wandb(tiny, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert train_here(tiny, "--train.max_steps=1") == 0
    assert "wandb" not in sys.modules


@pytest.mark.slow
def test_the_real_wandb_offline(tiny, tmp_path):
    """Two commands leave two folders of one run, each with the figures of its steps."""
    pytest.importorskip("wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    for steps in (2, 4):
        command = [sys.executable, "-m", "pretrain", "train", str(tiny), "--metrics.wandb=project"]
        command += ["--schedule.total_steps=4", f"--train.max_steps={steps}", '--eval.prompts=["a"]']
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "wandb: " in done.stdout
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(files) == 2
    assert [logged_steps(file) for file in files] == [[1, 2], [3, 4]]


def logged_steps(file) -> list[int]:
    """The steps with a training loss in a file of wandb's: LevelDB's log of protocol buffers behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, steps, place, whole = file.read_bytes(), [], 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no record's head fits into the rest of a block
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind not in (1, 4):  # the whole of a record, or its end
            continue
        record = wandb_internal_pb2.Record.FromString(whole)
        whole = b""
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in items:
            steps.append(int(float(items["step"])))
    return steps
