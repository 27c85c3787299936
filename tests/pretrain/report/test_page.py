"""The page of a report: what it holds of a run, and that no text in it is taken for anything but text."""

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from support import ROOT

from pretrain.loop.samples import SampleFile, read_samples
from pretrain.report.page import page
from pretrain.report.panels import PANELS, panels_of
from pretrain.report.series import BUCKETS, extremes, without_flats
from pretrain.report.settings import differing
from pretrain.report.write import make_report

EVIL = "</script><b>bold</b><!--<script>alert(1)</script>"


class Tags(HTMLParser):
    """Names of the elements of a page, and the text of its data."""

    def __init__(self, text):
        super().__init__()
        self.names, self.data, self._inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self._inside = ("id", "data") in attrs

    def handle_data(self, data):
        if self._inside:
            self.data += data
        self._inside = False


def write_run(folder, steps, settings="", **figures):
    """A run of so many logged steps, with `figures` by the first letters of their tags as functions of the step."""
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        record = {
            "step": step,
            "train/loss": 3.0 - step / steps,
            "train/tokens_seen": 10 * step,
            "train/flops": 5.0 * step,
        }
        lines.append(json.dumps(record | {tag: figure(step) for tag, figure in figures.items()}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").write_text(json.dumps({"step": steps, "growth_stages": 1, "device": EVIL}))
    (folder / "resolved.toml").write_text(settings)
    return folder


def page_of(*runs):
    """The page, its elements and its data; the picture, which takes a second, is not drawn."""
    report = make_report(list(runs))
    text = page(report.runs, report.smoothed, report.table, report.notes, report.window)
    found = Tags(text)
    return text, found, json.loads(found.data)


def test_texts_of_others_are_text_and_nothing_else(tmp_path):
    """In samples, prompts, names of runs and of figures, settings, and what the machine is called."""
    settings = f"[run]\ndir = {json.dumps(EVIL)}\n[{json.dumps(EVIL)}]\nkey = {json.dumps(EVIL)}\n"
    runs = [write_run(tmp_path / name, 4, settings, **{EVIL: float}) for name in ("plain", "<b>run", "& run")]
    samples = SampleFile(runs[0] / "samples.jsonl")
    samples.put(4, EVIL, EVIL + " and more \ud800")
    samples.flush()
    text, found, data = page_of(*runs)
    assert "b" not in found.names
    assert found.names.count("script") == 2
    assert EVIL not in text
    assert html.escape(EVIL) in text
    assert data["runs"][0]["samples"][0]["prompt"] == EVIL
    assert data["runs"][1]["name"] == "<b>run"


def test_the_page_asks_nobody_for_anything_and_runs_its_own_script_alone(tmp_path):
    text, _, _ = page_of(write_run(tmp_path / "run", 4))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)", text)


def test_every_peak_is_kept():
    rng = np.random.default_rng(0)
    values = rng.normal(size=50_000)
    values[[7, 31_111, 49_998]] = 40.0, -50.0, 60.0
    values[100:200] = np.nan
    places = extremes(values, 500)
    assert {0, 7, 31_111, 49_998, 49_999} <= set(places)
    assert len(places) <= 1002
    assert not np.isnan(values[places]).any()
    for start in range(0, 50_000, 1000):  # ten stretches and more
        within = values[places[(places >= start) & (places < start + 1000)]]
        assert within.max() == np.nanmax(values[start : start + 1000])
        assert within.min() == np.nanmin(values[start : start + 1000])
    assert list(extremes(np.array([np.nan, 2.0, 1.0]), 500)) == [1, 2]


def test_a_stretch_of_equal_values_is_its_ends():
    values = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0])
    assert list(without_flats(np.arange(7), values)) == [0, 3, 4, 5, 6]


def test_a_long_log_is_thinned_and_its_values_are_those_logged(tmp_path):
    steps = 4 * BUCKETS
    run = write_run(
        tmp_path / "run", steps, **{"train/grad_norm": lambda s: 99.25 if s == 1234 else 1 + s % 2 / 8,
                                    "guard/spikes": lambda s: float(s >= 1234)}
    )  # fmt: skip
    _, _, data = page_of(run)
    (found,) = data["runs"]
    norm = found["lines"]["train/grad_norm"]
    at = np.cumsum(norm["at"])
    logged = dict(zip((found["x"]["step"][place] for place in at), norm["y"], strict=True))
    assert logged[1234] == 99.25
    assert all(value == (99.25 if step == 1234 else 1 + step % 2 / 8) for step, value in logged.items())
    assert [found["x"]["step"][place] for place in found["marks"]["spikes"]] == [1234]
    assert found["x"]["tokens"] == [10 * step for step in found["x"]["step"]]
    both = [set(np.cumsum(found["lines"][tag]["at"]).tolist()) for tag in ("mean", "train/loss")]
    assert both[0] < both[1]


def test_an_evaluation_between_logged_steps_has_its_place(tmp_path):
    run = write_run(tmp_path / "run", 4)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    del lines[2]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "val/loss": 2.5}']) + "\n")
    (found,) = page_of(run)[2]["runs"]
    (place,) = found["lines"]["val/loss"]["at"]
    assert (found["x"]["step"][place], found["x"]["tokens"][place]) == (3, 30)


def test_every_figure_has_one_panel():
    tags = {"train/loss", "train/tokens_seen", "perf/data_wait", "data/a b/tokens", "data/c/tokens", "odd", "val/ppl"}
    panels = panels_of(tags)
    assert [(panel.title, panel.tags) for panel in panels] == [
        ("Training loss", ("train/loss",)),
        ("Waiting", ("perf/data_wait",)),
        ("Tokens by source", ("data/a b/tokens", "data/c/tokens")),
        ("odd", ("odd",)),
        ("val/ppl", ("val/ppl",)),
    ]
    assert panels[2].labels == ("a b", "c")
    by_source = panels_of({f"val/{name}/{figure}" for name in "ab" for figure in ("loss", "bits_per_byte")})
    assert [panel.title for panel in by_source] == ["Held-out loss by source", "Bits per byte by source"]
    kinds = {f"spectrum/weight/{kind}/stable_rank" for kind in "abcde"}
    assert len(panels_of(kinds)) == 1
    assert [panel.labels for panel in panels_of(kinds, several=True)] == [(kind,) for kind in "abcde"]
    assert all(not panel.labels or len(panel.labels) == len(panel.tags) for panel in PANELS)


def test_settings_that_differ(tmp_path):
    one = write_run(tmp_path / "one", 4, "[run]\ndir = 'one'\nseed = 0\n[train]\nfast = true\nlist = [1, 2]\n")
    two = write_run(tmp_path / "two", 4, "[run]\ndir = 'two'\nseed = 1\n[train]\nlist = [1, 2]\n")
    report = make_report([one, two])
    assert differing(report.runs) == [["run.seed", "0", "1"], ["train.fast", "true", "-"]]
    text, _, _ = page_of(one, two)
    assert "<td>run.seed</td><td>0</td><td>1</td>" in text


def test_the_report_of_a_whole_run_waits_for_no_torch(tmp_path):
    run = write_run(tmp_path / "run", 4)
    code = "import sys; from pretrain.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(run)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_samples_of_steps_made_again_and_of_lines_cut(tmp_path):
    path = tmp_path / "samples.jsonl"
    samples = SampleFile(path)
    for step, text in ((1, "old"), (2, "other"), (1, "new"), (9, "later")):
        samples.put(step, "p", text)
        samples.flush()
    with path.open("ab") as file:
        file.write(b'\n{"step": 2, "prompt": "p", "te')
    samples.put(2, "q", "after")
    samples.flush()
    assert [(s["step"], s["prompt"], s["text"]) for s in read_samples(path, 5)] == [
        (1, "p", "new"), (2, "p", "other"), (2, "q", "after"),
    ]  # fmt: skip
    assert read_samples(tmp_path / "none", 5) == []


@pytest.mark.parametrize("about", ['{"planned_memory": {"items": {"weights": 2e9, "odd": "x"}}}', "[]", "{"])
def test_planned_memory_by_item(tmp_path, about):
    run = write_run(tmp_path / "run", 4, **{"mem/peak_resident_gib": lambda s: 0.5})
    (run / "run.json").write_text(about)
    text, _, _ = page_of(run)
    assert ("weights 1.86 GiB" in text) == ("weights" in about)
    assert "0.50 GiB" in text
