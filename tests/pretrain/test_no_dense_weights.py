"""A run whose linears are no matrices: what needs none of them works, what needs them says so before any work."""

import json

import pytest
from support import logged, train_here, write_tiny

from model.errors import UserError
from pretrain.cli import main

SENTENCE = 'linears with linear.name = "cola" have no dense weights, since an activation lies between their factors; '


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cola")
    config = write_tiny(folder, corpus)
    assert train_here(config, "--linear.name=cola", "--train.max_steps=3") == 0
    return folder / "run"


def test_held_out_loss_and_text(run, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["loss"] < 20
    assert main(["sample", str(run), "--prompt", "a", "--tokens", "4"]) == 0


def test_export_is_refused(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 2
    assert f"export: {SENTENCE}use it with sparlow eval and sparlow sample" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_spectra_are_refused(run, tiny, tmp_path, capsys):
    assert main(["spectrum", str(run), "--out", str(tmp_path / "out")]) == 2
    assert f"spectrum: {SENTENCE}give a checkpoint of other linears" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    other = tmp_path / "run"
    train_here(tiny, "--train.max_steps=1")
    assert main(["spectrum", str(other), "--against", str(run)]) == 2
    assert f"--against: {SENTENCE}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^metrics\.spectra_every: linears .* have no dense weights"):
        train_here(tiny, "--linear.name=cola", "--metrics.spectra_every=2")


def test_import_is_refused(tmp_path, capsys):
    for name, sentence in (
        ("cola", f"--linear cola: {SENTENCE}choose one of dense, low_rank, sparse_low_rank"),
        ("colas", "--linear 'colas' is none of dense, low_rank, sparse_low_rank"),
    ):
        assert main(["import", str(tmp_path), "--out", str(tmp_path / "in"), "--linear", name]) == 2
        assert sentence in capsys.readouterr().err


def test_growth_in_depth_and_rank(tiny, tmp_path):
    growth = ["--growth.enabled=true", "--growth.factor=2", "--growth.rank=4", "--growth.at=0.5"]
    options = ["--linear.name=cola", "--linear.rank=8", "--schedule.total_steps=4"]
    assert train_here(tiny, *options, *growth) == 0
    assert len(logged(tmp_path / "run")) == 4
