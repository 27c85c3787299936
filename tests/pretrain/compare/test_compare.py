"""A comparison from the first run to the last, with a stand-in for `train`: stages, failures, stops, resumes."""

import csv
import errno
import json
import os
import signal
import sys
import threading
import time

import pytest
from suites import STAND_IN, write_suite

from model.errors import RunFailed, UserError
from pretrain.checkpoint.store import CheckpointStore
from pretrain.cli import main
from pretrain.compare import execute
from pretrain.compare.compare import Options, _remarks, compare
from pretrain.compare.matrix import make_methods
from pretrain.compare.outcome import read_outcome
from pretrain.compare.progress import Progress
from pretrain.compare.read import read_suite

ALL = Options()


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path, request):
    """Pictures take a second, and are drawn where a test asks for them."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("pretrain.compare.write.draw_pictures", lambda *_: [])
    script = tmp_path / "train.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(execute, "COMMAND", (sys.executable, "-I", "-S", str(script)))
    monkeypatch.setattr(execute, "POLL_S", 0.005)
    monkeypatch.setattr("pretrain.compare.compare._require_corpus", lambda method: None)


@pytest.fixture
def pictures():
    """Whoever asks for it gets them."""


def began(folder):
    """The runs that have begun since the last call, as method/run."""
    path = folder / "suite" / "began"
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def per_token(config, parameters):
    """FLOPs of a token: six for each parameter of linears and head, and 12 per position, head and its width."""
    return 6 * (parameters + 320 * 32) + 12 * config.train.seq_len * config.model.dim * config.model.n_layers


def table(folder):
    with (folder / "suite" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_stages_of_a_comparison(tmp_path, capsys):
    suite = read_suite(write_suite(tmp_path, more="[7]"))
    assert compare(suite, ALL) == 0
    runs = began(tmp_path)
    tuning = [f"{method}/lr-{lr}_seed-0" for method in ("dense+adamw", "thin+adamw") for lr in (0.001, 0.002)]
    assert runs[:4] == tuning
    seeds = [f"{method}/lr-0.001_seed-1" for method in ("dense+adamw", "thin+adamw")]
    # Half the FLOPs, twice the steps; the baseline's runs count for both tables.
    flops = [f"thin+adamw/lr-0.001_seed-{seed}_flops-200" for seed in (0, 1)]
    assert runs[4:8] == seeds + flops
    # 2 x 0.00707 tells means apart that differ by 0.015, as at equal tokens, and not by 0.005, as at equal FLOPs.
    assert runs[8:] == ["dense+adamw/lr-0.001_seed-7", "thin+adamw/lr-0.001_seed-7_flops-200"]
    rows = table(tmp_path)
    assert [(row["equal"], row["method"], row["seeds"]) for row in rows] == [
        ("tokens", "dense + adamw", "2"), ("tokens", "thin + adamw", "2"),
        ("flops", "dense + adamw", "3"), ("flops", "thin + adamw", "3"),
    ]  # fmt: skip
    assert [row["flops"] for row in rows] == ["10000.0", "5000.0", "10000.0", "10000.0"]
    text = (tmp_path / "suite" / "table.md").read_text()
    assert "| dense + adamw | 0.001* | 3.0167 | 0.0379 | 3 | baseline |" in text
    printed = capsys.readouterr().out
    assert "[1 of 8]  dense + adamw  lr 0.001  seed 0  loss 2.9900" in printed
    assert "[10 of 10]" in printed


def test_neighbours_are_told_by_two_standard_deviations(tmp_path):
    """As above, with seeds whose losses are further apart: then the same difference of means is within them."""
    assert compare(read_suite(write_suite(tmp_path, seeds="[0, 3]", more="[7]", equal='["tokens"]')), ALL) == 0
    assert began(tmp_path)[6:] == ["dense+adamw/lr-0.001_seed-7", "thin+adamw/lr-0.001_seed-7"]


def test_nothing_is_run_twice_and_only_what_is_new_is_run(tmp_path, pictures):
    compare(read_suite(write_suite(tmp_path)), ALL)
    before = {path: path.read_bytes() for path in (tmp_path / "suite").iterdir() if path.suffix in (".png", ".md")}
    assert {path.name for path in before} >= {"loss_tokens.png", "loss_flops.png", "memory.png", "curves.png"}
    assert len(began(tmp_path)) == 8
    assert compare(read_suite(write_suite(tmp_path)), ALL) == 0
    assert began(tmp_path) == []
    assert {path: path.read_bytes() for path in before} == before
    assert compare(read_suite(write_suite(tmp_path, seeds="[0, 1, 2]", equal='["tokens"]')), ALL) == 0
    assert began(tmp_path) == ["dense+adamw/lr-0.001_seed-2", "thin+adamw/lr-0.001_seed-2"]


def test_a_changed_base_is_refused_before_anything_is_run(tmp_path):
    compare(read_suite(write_suite(tmp_path)), ALL)
    began(tmp_path)
    path = write_suite(tmp_path, seeds="[0, 1, 2]")
    path.write_text(path.read_text().replace("global_batch_size = 4", "global_batch_size = 6"))
    with pytest.raises(UserError, match=r"train.global_batch_size was 4, is 6: .* take another suite.dir"):
        compare(read_suite(path), ALL)
    with pytest.raises(UserError, match=r"schedule.total_steps was 100, is 101"):
        compare(read_suite(write_suite(tmp_path, steps=101)), ALL)
    path = write_suite(tmp_path)
    path.write_text(path.read_text().replace("every = 0", "every = 50").replace("[base.checkpoint]\nevery = 2", ""))
    assert compare(read_suite(path), ALL) == 0  # what changes no result may change
    assert began(tmp_path) == []


def test_what_fails_is_recorded_and_the_others_go_on(tmp_path, capsys):
    suite = read_suite(write_suite(tmp_path, rates="[0.25, 0.5]", equal='["tokens"]', extra=(
        '[[methods]]\nlinear = ["dense"]\noptimizer = ["other"]\nrates = [1e-3, 0.5]\n'
        '[optimizers.other]\nname = "adamw"\nbetas = [0.9, 0.999]\n'
    )))  # fmt: skip
    assert compare(suite, ALL) == 1
    assert began(tmp_path)[-1] == "dense+other/lr-0.001_seed-1"
    rows = {row["method"]: row for row in table(tmp_path)}
    assert (rows["dense + other"]["status"], rows["dense + other"]["seeds"]) == ("done", "2")
    assert rows["dense + adamw"]["loss"] == rows["dense + other"]["difference_percent"] == ""
    text = (tmp_path / "suite" / "table.md").read_text()
    assert "- dense + adamw, lr 0.25, seed 0: failed: the disk is full" in text
    assert "- dense + other, lr 0.5, seed 0: diverged: 10 updates in a row were skipped" in text
    assert "5 runs have failed or diverged" in capsys.readouterr().out
    # What has failed is tried again, what has diverged would again.
    assert compare(suite, ALL) == 1
    assert began(tmp_path) == ["dense+adamw/lr-0.25_seed-0", "thin+adamw/lr-0.25_seed-0"]


@pytest.fixture
def deaf():
    """SIGTERM does nothing by itself: one that comes after the comparison must not end the tests."""
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("options", [ALL, Options(jobs=2)])
def test_a_signal_stops_the_runs_and_the_next_command_goes_on(tmp_path, options, deaf):
    suite = read_suite(write_suite(tmp_path))
    waits = tmp_path / "suite" / "wait"
    waits.parent.mkdir()
    waits.touch()

    def stop():
        path = tmp_path / "suite" / "began"
        while not path.exists() or len(path.read_text().splitlines()) < options.jobs:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    started = time.monotonic()
    assert compare(suite, options) == 143
    thread.join()
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGTERM) == handler
    stopped = began(tmp_path)
    assert len(stopped) == options.jobs
    waits.unlink()
    assert compare(suite, options) == 0
    assert set(stopped) < set(began(tmp_path))
    assert all(row["status"] == "done" for row in table(tmp_path))


def test_only_some_methods(tmp_path, capsys):
    """Methods come one command after another; what train.dtype = "auto" came to is no change of the base."""
    path = write_suite(tmp_path)
    path.write_text(path.read_text().replace('dtype = "fp32"', ""))
    suite = read_suite(path)
    assert compare(suite, Options(only="thin*")) == 0
    assert len(began(tmp_path)) == 3
    assert "no runs at equal FLOPs without a run of dense + adamw, the baseline" in capsys.readouterr().out
    assert compare(suite, Options(only="dense*")) == 0
    assert len(began(tmp_path)) == 3
    assert compare(suite, Options(only="thin*")) == 0
    assert len(began(tmp_path)) == 2
    with pytest.raises(UserError, match="--only fat: is none of the methods"):
        compare(suite, Options(only="fat"))


def test_a_pattern_that_is_empty_is_none(tmp_path, capsys):
    """As of a shell's variable that is not set."""
    assert main(["compare", str(write_suite(tmp_path)), "--only", ""]) == 2
    assert "--only : is none of the methods" in capsys.readouterr().err


def test_a_stop_says_nothing_of_what_is_still_to_come(tmp_path, capsys):
    progress = Progress(read_suite(write_suite(tmp_path)), make_methods(read_suite(tmp_path / "suite.toml")), {})
    assert not [line for line in _remarks(progress) if "equal FLOPs" in line]
    progress.chosen = {"thin + adamw"}
    assert [line for line in _remarks(progress) if "there are no runs at equal FLOPs without a run of dense" in line]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("resolved.toml", None, "whose resolved.toml is missing or damaged"),
        ("resolved.toml", "[[[", "whose resolved.toml is missing or damaged"),
        ("resolved.toml", "linear = 3", "holds a run in which .* and 11 more"),
    ],
)
def test_a_run_that_nobody_can_tell_is_not_counted(tmp_path, file, text, said):
    suite = read_suite(write_suite(tmp_path, equal='["tokens"]'))
    assert compare(suite, ALL) == 0
    path = make_methods(suite)["dense + adamw"].run(1e-3, 0, 100).folder / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=said):
        compare(suite, ALL)


@pytest.mark.parametrize("change", [{"error": 3}, {"val_loss": "x"}, {"val_loss": float("nan")}, {"val_loss": [1]}])
def test_a_summary_that_says_no_loss_is_none(tmp_path, change):
    suite = read_suite(write_suite(tmp_path, equal='["tokens"]'))
    assert compare(suite, ALL) == 0
    run = make_methods(suite)["dense + adamw"].run(1e-3, 0, 100)
    path = run.folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    outcome = read_outcome(run)
    assert outcome is None or (outcome.status, outcome.loss) == ("diverged", None)


def test_a_commit_that_is_no_text(tmp_path):
    suite = read_suite(write_suite(tmp_path, equal='["tokens"]'))
    assert compare(suite, ALL) == 0
    path = make_methods(suite)["dense + adamw"].run(1e-3, 0, 100).folder / "compare.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": ["x"]}))
    assert compare(suite, ALL) == 0
    assert "the runs are of several commits" in (tmp_path / "suite" / "table.md").read_text()


def test_gpus_that_are_not_there_are_refused(tmp_path, capsys):
    """Else each run would train on the processor."""
    assert main(["compare", str(write_suite(tmp_path)), "--gpus", "4242"]) == 2
    assert "--gpus 4242: this machine has no such GPU" in capsys.readouterr().err
    assert not (tmp_path / "suite").exists()


def test_dry_run_lists_and_leaves_nothing(tmp_path, capsys):
    assert compare(read_suite(write_suite(tmp_path)), Options(dry_run=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 methods, 8 runs"
    config = make_methods(read_suite(tmp_path / "suite.toml"))["dense + adamw"].config
    dense, thin = (per_token(config, parameters) for parameters in (2 * 9184, 2 * 8 * (4 * 64 + 3 * 85)))
    assert f"thin + adamw  the best lr  seed 1  about {100 * dense / thin:.0f} steps, for equal FLOPs" in lines
    assert not (tmp_path / "suite").exists()


def test_results_have_what_a_page_needs(tmp_path):
    suite = read_suite(write_suite(tmp_path, equal='["tokens"]'))
    compare(suite, ALL)
    results = json.loads((tmp_path / "suite" / "results.json").read_text())
    assert len(results) == 6
    one = results[0]
    assert (one["method"], one["rate"], one["seed"], one["val_loss"]) == ("dense + adamw", 1e-3, 0, 2.99)
    assert one["train_loss"] == pytest.approx(9 - (96 + 97 + 98 + 99 + 100) / 500)
    dense, thin = (next(one for one in results if one["method"] == f"{name} + adamw") for name in ("dense", "thin"))
    config = make_methods(suite)["dense + adamw"].config
    assert dense["linear_parameters"] == 2 * (4 * 32 * 32 + 3 * 32 * 53)
    assert dense["parameters"] == dense["linear_parameters"] + 2 * 320 * 32 + 5 * 32
    # AdamW in fp32: a weight, its gradient and two moments of four bytes each.
    assert config.train.dtype == "fp32"
    for row in (dense, thin):
        assert row["planned_state_bytes"] == pytest.approx(12 * row["parameters"], rel=0.01)
        assert row["planned_bytes"] == pytest.approx(16 * row["parameters"], rel=0.01)
    assert one["hardware"]["cores"] >= 1
    assert one["wall_seconds"] > 0


@pytest.mark.parametrize("what", ["replace_text", "write_comparison"])
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, what):
    """Whether it is a run's note or a table that has no room; the next command goes on."""
    suite = read_suite(write_suite(tmp_path, equal='["tokens"]'))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")

    with monkeypatch.context() as patch:
        patch.setattr(f"pretrain.compare.compare.{what}", full)
        with pytest.raises(RunFailed, match=r"^suite.dir: there: No space left on device; once that is mended, "):
            compare(suite, ALL)
    assert compare(suite, ALL) == 0


def test_runs_of_a_killed_command_may_end_first(tmp_path, monkeypatch, capsys):
    """They go on until their checkpoint is committed, and hold their folders for so long."""
    monkeypatch.setattr("pretrain.compare.compare.LOOK_S", 0.01)
    suite = read_suite(write_suite(tmp_path, equal='["tokens"]'))
    folder = make_methods(suite)["dense + adamw"].run(1e-3, 0, 100).folder
    store = CheckpointStore(folder)
    store.lock()
    (folder / "compare.json").write_text('{"status": "running"}')
    early = []

    def end():
        early.extend(began(tmp_path))
        store.unlock()

    timer = threading.Timer(0.5, end)
    timer.start()
    assert compare(suite, ALL) == 0
    timer.join()
    assert not early
    assert "lr 0.001  seed 0  waits for an earlier process of this run" in capsys.readouterr().out
    store.lock()
    (folder / "compare.json").write_text('{"status": "running"}')
    (folder / "summary.json").unlink()
    monkeypatch.setattr("pretrain.compare.compare.PATIENCE_S", 0.0)
    with pytest.raises(UserError, match=r"lr-0.001_seed-0 is in use by process"):
        compare(suite, ALL)
    store.unlock()


def test_the_code_that_made_a_run_is_that_of_its_beginning(tmp_path, monkeypatch):
    """It may be changed while a comparison goes on."""
    commits = iter(["one", *["two"] * 9])
    monkeypatch.setattr("pretrain.compare.compare.here", lambda: {"commit": next(commits)})
    compare(read_suite(write_suite(tmp_path, equal='["tokens"]')), ALL)
    text = (tmp_path / "suite" / "table.md").read_text()
    assert "- the runs are of several commits: one, two; results.json says which" in text
