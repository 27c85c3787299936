"""report: the picture and the table of runs, on run folders written here; the arithmetic is in report/."""

import hashlib
import json
import shutil

import pytest
from support import train_here, write_tiny

from model.errors import UserError
from pretrain.cli import main
from pretrain.report import write_report
from pretrain.report.words import speedup_lines
from pretrain.report.write import make_report


def write_run(folder, losses, flops=None, stages=None, **summary):
    """A run that logs `losses` at 10, 20, ... tokens; `flops` and twice that as dense equivalent where given."""
    folder.mkdir(parents=True)
    records = [{"step": i, "train/loss": loss, "train/tokens_seen": 10 * i} for i, loss in enumerate(losses, 1)]
    for record, spent in zip(records, flops or [], strict=False):
        record |= {"train/flops": spent, "train/flops_dense_equivalent": 2 * spent}
    records[-1] |= {"val/loss": 2.0, "val/bits_per_byte": 1.0}
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = {"step": len(losses), "growth_stages": len(stages or [0]), **summary}
    if stages:
        summary["stages"] = stages
    folder.joinpath("summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def scratch(tmp_path):
    return write_run(tmp_path / "scratch", [8.0, 6.0, 4.0, 3.0], [100.0, 200.0, 300.0, 400.0])


@pytest.fixture
def grown(tmp_path):
    """Reaches 4 at 200 FLOPs and 3 at 250 FLOPs, at 30 and 35 tokens."""
    stages = [{"n_layers": 2, "tokens": 20, "flops": 100.0}, {"n_layers": 4, "tokens": 20, "flops": 200.0}]
    return write_run(tmp_path / "grown", [9.0, 7.0, 4.0, 2.0], [50.0, 100.0, 200.0, 300.0], stages)


def test_two_runs_side_by_side(tiny, tmp_path):
    for name, linear in (("sltrain", "sparse_low_rank"), ("dense", "dense")):
        train_here(
            tiny, f"--run.dir={tmp_path}/{name}", f"--linear.name={linear}", "--train.max_steps=4", "--eval.every=2"
        )
    files = write_report([tmp_path / "sltrain", tmp_path / "dense"], tmp_path / "out")
    assert [path.name for path in files] == ["loss.png", "table.json", "index.html"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    table = json.loads(files[1].read_text())
    assert [row["run"] for row in table] == ["sltrain", "dense"]
    assert table[0]["parameters"] < table[1]["parameters"]
    assert "<td>dense</td>" in files[2].read_text()


def test_the_speedup_of_a_grown_run(scratch, grown, tmp_path, capsys):
    """A window of one logged step smooths nothing: 3 is reached with 250 of 400 FLOPs and 35 of 40 tokens."""
    assert main(["report", str(grown), str(scratch), "--window", "10", "--out", str(tmp_path / "out")]) == 0
    assert "reaches loss 3.000 with 0.62 of the FLOPs of scratch: speedup 60 %" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "reaches loss 3.000 with 0.62 of the FLOPs of scratch: speedup 60 %" in page
    assert "the last 10 tokens" in page
    assert "<td>2 → 4</td>" in page
    ours, theirs = json.loads((tmp_path / "out" / "table.json").read_text())
    found = ours["speedup"]
    assert (found["baseline"], found["loss"], found["window_tokens"]) == ("scratch", 3.0, 10)
    assert (found["flops"], found["flops_dense_equivalent"]) == pytest.approx((0.6, 0.6))
    assert found["tokens"] == pytest.approx(40 / 35 - 1)
    assert found["stage"] == 2
    begin = found["curve"][0]  # 6, reached with 200 FLOPs, and with one third of those from 100 to 200
    assert (begin["loss"], begin["flops"]) == pytest.approx((6.0, 200 / (400 / 3) - 1))
    assert (theirs["speedup"], theirs["speedup_reason"], theirs["window_tokens"]) == (None, None, 10)


def test_a_grown_run_may_be_the_baseline(scratch, grown):
    table = make_report([scratch, grown], baseline=str(grown), window=10).table
    assert table[0]["speedup"]["flops"] == pytest.approx(250 / 400 - 1)
    assert table[1]["speedup"] is None


def test_a_loss_that_the_small_model_reaches_is_no_gain_of_growth(scratch, tmp_path):
    stages = [{"n_layers": 2, "tokens": 30, "flops": 260.0}, {"n_layers": 4, "tokens": 10, "flops": 40.0}]
    run = write_run(tmp_path / "late", [9.0, 7.0, 4.0, 2.0], [50.0, 100.0, 200.0, 300.0], stages)
    report = make_report([scratch, run], window=10)
    assert report.table[1]["speedup"]["stage"] == 1
    assert report.notes == ["late: it reaches that loss before it has grown to its last model"]


def test_growth_alone_is_compared_with_nothing(grown, tmp_path):
    report = make_report([grown, write_run(tmp_path / "unknown", [3.0, 2.0], [1.0, 2.0], growth_stages=None)])
    assert [row["speedup"] for row in report.table] == [None, None]
    assert "name one with --baseline" in report.notes[0]


def test_a_run_without_flops_is_left_out_and_told(scratch, tmp_path, capsys):
    old = write_run(tmp_path / "old", [8.0, 3.0], [5.0])  # one of its two steps knows its FLOPs
    assert main(["report", str(scratch), str(old)]) == 0
    line = "old: its logged steps have no train/flops, so FLOPs and speedup leave it out"
    assert line in capsys.readouterr().out.splitlines()
    assert line in (scratch / "report" / "index.html").read_text(encoding="utf-8")
    row = json.loads((scratch / "report" / "table.json").read_text())[1]
    assert row["speedup"] is None
    assert "train/flops" in row["speedup_reason"]
    assert row["stages"] is row["flops_dense_equivalent"] is None


def test_a_run_that_never_comes_down_is_told(scratch, tmp_path):
    high = write_run(tmp_path / "high", [9.5, 9.0], [1.0, 2.0])
    report = make_report([scratch, high], window=10)
    assert report.table[1]["speedup"] is None
    assert report.notes == ["high: no speedup, because it never reaches the losses of scratch: 9.000 at best, "
                            "scratch begins at 6.000"]  # fmt: skip
    assert speedup_lines(report.table) == []


def test_a_picture_of_equal_runs_has_equal_bytes(scratch, grown, tmp_path):
    first, second = (write_report([scratch, grown], tmp_path / out, window=10)[0] for out in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def drawn(monkeypatch, runs, out):
    """The figure that a report of `runs` saves as its picture."""
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: (kept.append(figure), save(figure, *args, **kwargs))
    )
    write_report(runs, out, window=10)
    monkeypatch.undo()
    (figure,) = kept
    return figure


def test_what_the_panels_hold(scratch, grown, tmp_path, monkeypatch):
    figure = drawn(monkeypatch, [scratch, grown], tmp_path / "out")
    tokens, flops, bits = figure.axes
    assert [panel.get_xlabel() for panel in (tokens, flops, bits)] == ["tokens", "training FLOPs", "training FLOPs"]
    for panel, spent in ((tokens, 20), (flops, 100.0)):
        dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
        assert [list(line.get_xdata()) for line in dashed] == [[spent, spent]]
    assert "last 10 tokens" in figure.get_suptitle()


def test_json_is_the_table_and_nothing_else(scratch, grown, capsys):
    assert main(["report", str(scratch), str(grown), "--json"]) == 0
    assert capsys.readouterr().out == (scratch / "report" / "table.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--baseline", "other"], "--baseline other: is not one of the runs given: scratch"),
        (["--window", "0"], "--window 0: must be at least 1 token"),
        (["--window", "31"], "--window 31: longer than scratch, which has logged 30 tokens"),
    ],
)
def test_wrong_arguments_are_one_sentence(scratch, tmp_path, capsys, arguments, sentence):
    assert main(["report", str(scratch), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_logged_no_loss_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no logged step with a training loss"):
        make_report([write_run(tmp_path / "diverged", [None, None])])


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        write_report([tmp_path], tmp_path / "out")


@pytest.mark.fault("F41")
@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_summary_is_one_sentence(scratch, text):
    (scratch / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json: is not"):
        make_report([scratch])


@pytest.mark.fault("F41")
def test_a_line_that_is_no_record_is_one_sentence(scratch):
    metrics = scratch / "metrics.jsonl"
    metrics.write_text("3\n" + metrics.read_text())
    with pytest.raises(UserError, match="line 1 is not JSON of a step"):
        make_report([scratch])


def prepared_twice(folder):
    """The same text with two tokenizers, and another text with the first; three corpora."""
    found = {}
    for name, text, size in (("one", "ab", "280"), ("two", "ab", "300"), ("three", "cd", "280")):
        texts = folder / f"text-{text}"
        if not texts.is_dir():
            texts.mkdir(parents=True)
            count = 60 if text == "ab" else 62
            for index in range(40):
                parts = ((k % 2, k * (index + 3) % 4, (k + index) % 4) for k in range(count))
                words = (f"{text[a]}{'efgh'[b]}{'ijkl'[c]}" for a, b, c in parts)
                (texts / f"{index}.txt").write_text(" ".join(words))
        out = folder / name
        arguments = ["--text", str(texts), "--out", str(out), "--vocab-size", size, "--val-fraction", "0.3"]
        assert main(["prepare", *arguments]) == 0
        found[name] = out
    return found


def on_data(run, data):
    """Let the run's newest checkpoint say that it was trained on `data`, and `resolved.toml` where that lies."""
    checkpoint = run / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    fingerprint = hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps({"data_fingerprint": fingerprint}))
    write_tiny(run, data).rename(run / "resolved.toml")


def test_runs_on_unlike_data_have_no_speedup(scratch, grown, tmp_path, capsys):
    """On the same held-out text bits per byte over bytes of text compare, on another text nothing does."""
    data = prepared_twice(tmp_path / "data")
    on_data(scratch, data["one"])
    same, other = tmp_path / "same", tmp_path / "other"
    shutil.copytree(grown, same)
    shutil.copytree(grown, other)
    on_data(grown, data["two"])
    on_data(same, data["one"])
    on_data(other, data["three"])
    assert make_report([scratch, same], window=10).table[1]["speedup"]["flops"] == pytest.approx(0.6)

    report = make_report([scratch, grown], window=10)
    assert report.table[1]["speedup"] is None
    manifest = json.loads((data["two"] / "manifest.json").read_text())["train"]
    text = f"{40 * manifest['bytes'] / manifest['tokens']:.4g} bytes of text"
    assert f"1.0000 bits per byte after {text}" in report.table[1]["speedup_reason"]
    assert "other data or with another tokenizer than scratch" in report.notes[0]
    assert "on the same held-out text" in report.notes[0]

    assert main(["report", str(scratch), str(other), "--window", "10"]) == 0
    out = capsys.readouterr().out
    assert "speedup 6" not in out
    assert "the held-out texts are not known to be the same" in out


def test_data_that_one_run_alone_tells_is_said(scratch, grown, tmp_path):
    on_data(scratch, prepared_twice(tmp_path / "data")["one"])
    report = make_report([scratch, grown], window=10)
    assert report.table[1]["speedup"]
    assert "grown: only scratch tells what it was trained on" in report.notes[0]


def test_bits_per_byte_of_unlike_runs_are_drawn_over_bytes(scratch, grown, tmp_path, monkeypatch):
    data = prepared_twice(tmp_path / "data")
    on_data(scratch, data["one"])
    on_data(grown, data["two"])
    figure = drawn(monkeypatch, [scratch, grown], tmp_path / "out")
    assert [panel.get_xlabel() for panel in figure.axes] == ["tokens", "training FLOPs", "bytes of text"]


def test_a_run_that_is_still_going_is_drawn(tiny, tmp_path, capsys):
    """As far as it has logged, and the same figures as with the summary that it lacks."""
    run = tmp_path / "run"
    growth = ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.05"]
    train_here(tiny, *growth, "--train.max_steps=8", "--eval.every=4", "--metrics.every=4")
    whole = make_report([run]).table[0]
    summary = run / "summary.json"
    text = summary.read_text()
    for words in ("has no summary.json", "has a summary.json of an earlier step"):
        if "earlier" in words:
            summary.write_text(json.dumps(json.loads(text) | {"step": 4}))
        else:
            summary.unlink()
        assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
        assert f"run: {words}, so it is still training or was killed; drawn up to step 8" in capsys.readouterr().out
        row = json.loads((tmp_path / "out" / "table.json").read_text())[0]
        for key in ("step", "tokens_seen", "flops", "flops_dense_equivalent", "parameters", "stages", "val_loss"):
            assert row[key] == whole[key], key
        assert row["train_seconds"] is None


def test_a_killed_run_without_anything_but_its_metrics(scratch, grown):
    (scratch / "summary.json").unlink()
    report = make_report([grown, scratch], window=10)
    assert report.table[1]["step"] == 4
    assert (report.table[1]["tokens_seen"], report.table[1]["flops"]) == (40, 400.0)


def test_a_killed_run_whose_last_step_logged_its_evaluation_alone(scratch):
    """What is not logged of that step is what was logged last."""
    metrics, state = scratch / "metrics.jsonl", scratch / "checkpoints" / "step-00000004" / "state.json"
    records = [json.loads(line) | {"growth/layers": 3} for line in metrics.read_text().splitlines()]
    records.append({"step": 5, "val/loss": 1.5})
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    (scratch / "summary.json").unlink()
    state.parent.mkdir(parents=True)
    state.write_text(
        json.dumps(
            {"grown": [{"n_layers": 1, "steps": 2, "tokens": 20, "flops": 150.0, "flops_dense_equivalent": 300.0}]}
        )
    )
    row = make_report([scratch]).table[0]
    assert (row["step"], row["val_loss"]) == (5, 1.5)
    last = {"n_layers": 3, "steps": 3, "tokens": 20, "flops": 250.0, "flops_dense_equivalent": 500.0}
    assert row["stages"][1] == last
