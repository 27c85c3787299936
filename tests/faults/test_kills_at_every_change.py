"""Commands that are killed before each change that they make to the disk, and then given again."""

import pytest
from kill_each import killed_at_every_change
from support import logged, tensor_hashes, train_here, write_tiny

from pretrain.cli import main


@pytest.mark.slow
@pytest.mark.fault("F3")
def test_of_a_run(corpus, tmp_path):
    """It begins, saves twice, deletes the first checkpoint and ends."""
    config, options = (
        write_tiny(tmp_path, corpus),
        ["--train.max_steps=2", "--checkpoint.every=1", "--checkpoint.keep=1"],
    )
    assert train_here(config, *options) == 0
    (tmp_path / "before").mkdir()
    command = ["train", str(config), *options, "--run.dir={}/run"]
    killed = killed_at_every_change(tmp_path / "before", tmp_path / "killed", *command)
    assert len(killed) > 25
    for folder in killed:
        run = folder / "run"
        assert train_here(config, *options, f"--run.dir={run}") == 0
        assert tensor_hashes(run, 2) == tensor_hashes(tmp_path / "run", 2), folder
        assert logged(run) == logged(tmp_path / "run")
        names = {path.name for path in (run / "checkpoints").iterdir()}
        old = {"step-00000001"}  # of a run that has ended; where it goes on, the next save deletes it
        assert names - old == {"latest", "lock", "step-00000002"}, folder
        assert (run / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.fault("F42")
def test_of_preparing_a_corpus(corpus, tmp_path):
    """With an older corpus in its place, which is there whole, or none is."""
    text = ["prepare", "--text", str(corpus.parent / "text"), "--vocab-size", "300", "--out"]
    assert main([*text, str(tmp_path / "before" / "data"), "--max-tokens", "9000"]) == 0
    assert main([*text, str(tmp_path / "whole")]) == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    command = [*text, "{}/data", "--overwrite"]
    killed = killed_at_every_change(tmp_path / "before", tmp_path / "killed", *command)
    for folder in killed:
        assert main([argument.replace("{}", str(folder)) for argument in command]) == 0
        assert {path.name: path.read_bytes() for path in (folder / "data").iterdir()} == expected, folder
