"""Two processes grow as one does, and what two have saved before the growth grows in one."""

import json
import shutil
from pathlib import Path

import pytest
from growth_runs import GALORE, GROWS, GROWTH, LAST, checkpoint, grown_run, names, records, state, summary, tiny_config
from processes import train_world
from support import logged

RUNS = {
    "stage0": [],
    "galore": GALORE,
    "stage1": ["--parallel.zero_stage=1"],
    "stage2": ["--parallel.zero_stage=2"],
    "copied": ["--growth.optimizer=copy"],
    "copied1": ["--growth.optimizer=copy", "--parallel.zero_stage=1"],
}
QUICK = ("stage0", "galore")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS]


def largest(one: Path, other: Path) -> float:
    """Difference of the losses."""
    a, b = logged(one), logged(other)
    assert list(a) == list(b)
    return max(abs(float(a[step]) - float(b[step])) for step in a)


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory) -> Path:
    return tiny_config(tmp_path_factory.mktemp("config"), corpus)


@pytest.fixture(scope="module")
def two(config, tmp_path_factory):
    """Runs of two processes by name: a folder with `run`, to the end, and `paused`, which has not grown yet."""
    folder = tmp_path_factory.mktemp("two")

    def run(name):
        together = [other for other in RUNS if (other in QUICK) == (name in QUICK)]
        if not (folder / name).exists():
            jobs = [[*GROWTH, *RUNS[other], f"--run.dir={folder}/{other}/run"] for other in together]
            pause = f"--train.max_steps={GROWS}"
            jobs += [[*GROWTH, *RUNS[other], f"--run.dir={folder}/{other}/paused", pause] for other in together]
            assert train_world(2, config, jobs).count("growing 1 layer to 2 layers") == len(together)
        return folder / name

    return run


@pytest.fixture(scope="module")
def one(config, tmp_path_factory):
    """The same runs with one process."""
    folder = tmp_path_factory.mktemp("one")
    done: dict[str, Path] = {}

    def run(name):
        if name not in done:
            done[name] = grown_run(config, folder / name, *RUNS[name])
        return done[name]

    return run


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(one, two, name):
    run = two(name) / "run"
    assert len(logged(run)) == LAST
    assert largest(one(name), run) < 1e-5
    for key in ("flops_dense_equivalent", "tokens_seen", "growth_stages"):
        assert summary(run)[key] == summary(one(name))[key]
    ours, theirs = (
        [{key: value for key, value in stage.items() if key != "flops"} for stage in summary(path)["stages"]]
        for path in (run, one(name))
    )
    assert ours == theirs
    # What a linear does once in a step, each of two processes does: never less, and equal where nothing is kept.
    assert summary(run)["flops"] >= summary(one(name))["flops"]
    assert names(run) == names(one(name))


@pytest.mark.parametrize("name", CASES)
def test_saved_by_two_and_grown_by_one(config, one, two, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(two(name) / "paused", run)
    assert names(run) == [f"step-{GROWS:08d}"]
    manifest = json.loads((checkpoint(run, GROWS) / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert len(manifest["files"]) > 5
    grown_run(config, run, *RUNS[name])
    assert largest(one(name), run) < 1e-5
    assert [record["step"] for record in records(run)] == list(range(1, LAST + 1))
    assert state(checkpoint(run, LAST))["updates"] == (LAST if "copied" in name else LAST - GROWS)
