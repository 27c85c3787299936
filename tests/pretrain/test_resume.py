"""Resume is exact: pausing a run changes no tensor and no logged loss, and every number in its state is needed."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support import ROOT, edit_checkpoint, logged, tensor_hashes, train_here, write_tiny

from model.errors import UserError
from model.linear import LINEARS
from pretrain.loop.state import SINCE_FORMAT_3, TrainState


@pytest.mark.fault("F1")
@pytest.mark.parametrize("linear", list(LINEARS))
def test_two_resumes_equal_no_resume(tiny, tmp_path, linear):
    needs = {"poet": ["--linear.block=8", "--model.ffn_dim=56", "--linear.merge_every=5"]}
    require_equal_runs(tiny, tmp_path, [f"--linear.name={linear}", *needs.get(linear, [])], pauses=(6, 13, 20))


@pytest.mark.fault("F1")
@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (2, "fp32"),
        (3, "bf16"),
        *(pytest.param(*slow, marks=pytest.mark.slow) for slow in ((1, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"))),
    ],
)
def test_two_resumes_equal_no_resume_when_sharded(tiny, tmp_path, stage, dtype):
    options = [f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}", "--optimizer.weight_decay=0.1"]
    require_equal_runs(tiny, tmp_path, options, pauses=(3, 6, 9))


@pytest.mark.fault("F1")
@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(3, "bf16"), *(pytest.param(*slow, marks=pytest.mark.slow) for slow in ((1, "bf16"), (2, "fp32")))],
)
def test_two_resumes_equal_no_resume_with_matrices_that_do_not_train(tiny, tmp_path, stage, dtype):
    options = ["--linear.name=lora", f"--parallel.zero_stage={stage}", f"--train.dtype={dtype}"]
    require_equal_runs(tiny, tmp_path, options, pauses=(2, 4))


@pytest.mark.fault("F1")
def test_two_resumes_equal_no_resume_with_bf16_weights(tiny, tmp_path):
    options = ["--train.dtype=bf16", "--optimizer.weights=bf16", "--train.checkpoint_every_layers=1"]
    require_equal_runs(tiny, tmp_path, options, pauses=(3, 6, 9))


def require_equal_runs(config: Path, folder: Path, options: list[str], pauses: tuple[int, ...]) -> None:
    """A run paused at every step of `pauses` and one that goes straight to the last: equal to the byte."""
    straight, paused, last = folder / "straight", folder / "paused", pauses[-1]
    train_here(config, *options, f"--run.dir={straight}", f"--train.max_steps={last}")
    for pause in pauses:
        train_here(config, *options, f"--run.dir={paused}", f"--train.max_steps={pause}")
    assert tensor_hashes(paused, last) == tensor_hashes(straight, last)
    assert logged(paused) == logged(straight)
    assert logged(paused, "train/grad_norm") == logged(straight, "train/grad_norm")
    assert len(logged(straight)) == last


@pytest.fixture(scope="module")
def paused(corpus, tmp_path_factory) -> Path:
    """A run paused at step 20; leave it as it is."""
    folder = tmp_path_factory.mktemp("paused")
    train_here(write_tiny(folder, corpus), "--train.max_steps=20")
    return folder / "run"


@pytest.fixture
def halfway(paused, tmp_path) -> Path:
    """A copy of it where `tiny` has its run."""
    return shutil.copytree(paused, tmp_path / "run")


def edit_state(run: Path, edit) -> None:
    """Change state.json of the newest checkpoint and make its manifest agree."""
    folder = run / "checkpoints" / "step-00000020"
    state = json.loads((folder / "state.json").read_text())
    edit(state)
    edit_checkpoint(folder, files={"state.json": json.dumps(state).encode()})


@pytest.mark.fault("F5")
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(TrainState) if f.name not in SINCE_FORMAT_3])
def test_a_missing_number_is_noticed(halfway, tiny, field):
    edit_state(halfway, lambda state: state.pop(field))
    with pytest.raises(UserError, match=field):
        train_here(tiny)


def test_a_checkpoint_from_before_origins_goes_on_as_one_without(halfway, tiny, tmp_path):
    untouched = tmp_path / "untouched"
    shutil.copytree(halfway, untouched)
    edit_state(halfway, lambda state: [state.pop(field) for field in SINCE_FORMAT_3])
    train_here(tiny, "--train.max_steps=22")
    train_here(tiny, "--train.max_steps=22", f"--run.dir={untouched}")
    assert tensor_hashes(halfway, 22) == tensor_hashes(untouched, 22)
    assert logged(halfway) == logged(untouched)


# What each number decides: a run that goes on with another value must end differently in this respect.
CONSEQUENCE = {
    "step": "losses",
    "cursor": "losses",
    "updates": "losses",  # AdamW's bias correction
    "skipped_steps": "skipped_steps",
    "tokens_seen": "tokens_seen",
    "flops": "flops",
    "flops_dense_equivalent": "flops_dense_equivalent",
    "train_seconds": "train_seconds",
    "stage_start": "stages",
    "evaluation_due": "evaluations",
}
ELSEWHERE = {
    "consecutive_skips",
    "kernels",
    "stage",
    "grown",
    "origin",
    "sources",
    *("losses", "grad_norms", "skips", "spikes", "rewinds"),
}  # test_guard.py, test_kernel_choices.py, growth/, test_from.py, test_mixture_runs.py, faults/test_spikes.py


def test_every_number_has_a_consequence():
    assert {field.name for field in dataclasses.fields(TrainState)} == CONSEQUENCE.keys() | ELSEWHERE


@pytest.mark.fault("F1")
@pytest.mark.parametrize("field", CONSEQUENCE)
def test_a_wrong_number_changes_the_run(halfway, tiny, tmp_path, field):
    untouched = tmp_path / "untouched"
    shutil.copytree(halfway, untouched)

    def shift(state):
        state[field] = True if field == "evaluation_due" else state[field] + (16 if field == "cursor" else 1)

    edit_state(halfway, shift)
    if field == "step":  # or folder and manifest would contradict it
        folder = halfway / "checkpoints" / "step-00000020"
        edit_checkpoint(folder, step=21)
        folder.rename(folder.with_name("step-00000021"))
    train_here(tiny, "--train.max_steps=24")
    train_here(tiny, "--train.max_steps=24", f"--run.dir={untouched}")
    kind = CONSEQUENCE[field]
    if kind == "evaluations":
        assert (list(logged(halfway, "val/loss")), list(logged(untouched, "val/loss"))) == ([20], [])
        assert logged(halfway) == logged(untouched)
    elif kind == "losses":
        assert list(logged(halfway).values())[20:] != list(logged(untouched).values())[20:]
    else:
        summaries = [json.loads((run / "summary.json").read_text())[kind] for run in (halfway, untouched)]
        assert summaries[0] != summaries[1]


@pytest.mark.fault("F1")
@pytest.mark.parametrize("tensor", ["model", "optimizer.exp_avg", "optimizer.exp_avg_sq", "buffer"])
def test_every_tensor_matters(halfway, tiny, tmp_path, tensor, monkeypatch):
    """A checkpoint whose weights, moments or supports come back as zeros gives another run."""
    from model.linear.support.element import ElementSparse
    from pretrain.checkpoint.read import Checkpoint

    untouched = tmp_path / "untouched"
    shutil.copytree(halfway, untouched)
    train_here(tiny, "--train.max_steps=22", f"--run.dir={untouched}")
    read = Checkpoint.read
    monkeypatch.setattr(ElementSparse, "check", lambda self: None)  # it would notice

    def forgetful(self, name):
        value = read(self, name)
        prefix, _, suffix = tensor.partition(".")
        hit = name.endswith(".loc") if tensor == "buffer" else name.startswith(prefix) and name.endswith(suffix)
        if tensor == "buffer" and hit:
            return value.roll(1) if value.numel() > 1 else value
        return value.zero_() if hit and not name.endswith((".loc", ".tile_ptr")) else value

    monkeypatch.setattr(Checkpoint, "read", forgetful)
    train_here(tiny, "--train.max_steps=22")
    assert list(logged(halfway).values())[20:] != list(logged(untouched).values())[20:]


def test_another_configuration_is_refused_with_a_diff(halfway, tiny):
    with pytest.raises(UserError, match=r"optimizer\.lr was 0\.001, is 0\.002.*another run\.dir"):
        train_here(tiny, "--optimizer.lr=2e-3")
    with pytest.raises(UserError, match=r"model\.n_layers was 2, is 3"):
        train_here(tiny, "--model.n_layers=3")


@pytest.mark.fault("F23")
def test_another_corpus_is_refused(halfway, tiny, corpus, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    train_here(tiny, f"--data.path={other}", "--train.max_steps=21")  # the same bytes elsewhere are the same corpus
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserError, match=r"data\.path holds another corpus"):
        train_here(tiny, f"--data.path={other}")


def test_dtype_auto_keeps_what_the_run_began_with(tiny, tmp_path):
    train_here(tiny, "--train.max_steps=2", "--train.dtype=bf16")
    train_here(tiny, "--train.max_steps=4", "--train.dtype=auto")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["dtype"] == "bf16"


def test_a_finished_run_has_nothing_to_do(tiny, tmp_path, capsys):
    train_here(tiny, "--train.max_steps=2")
    before = (tmp_path / "run" / "summary.json").read_text()
    assert train_here(tiny, "--train.max_steps=2") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").read_text() == before


@pytest.mark.fault("F1")
@pytest.mark.slow
@pytest.mark.parametrize("linear", ["dense", "sparse_low_rank"])
def test_the_quick_start_resumes_exactly(tmp_path, linear):
    """configs/quickstart.toml at full size on the standard library's sources."""
    from pretrain.cli import main

    data = tmp_path / "data"
    assert main(["prepare", "--vocab-size", "2048", "--out", str(data)]) == 0
    options = [f"--data.path={data}", f"--linear.name={linear}", "--metrics.every=1", "--eval.every=0"]
    require_equal_runs(ROOT / "configs" / "quickstart.toml", tmp_path, options, pauses=(20, 40, 60))
