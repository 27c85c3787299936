"""A rank that fails alone while a save reads whole tensors: all end with its sentence, and nobody waits for it."""

from pathlib import Path

import pytest
from processes import start_world
from support import train_here

SCRIPT = str(Path(__file__).with_name("one_save_fails.py"))
ENGINES = {
    "stage 0": ["--parallel.zero_stage=0"],
    "stage 1": ["--parallel.zero_stage=1"],
    "stage 3": ["--parallel.zero_stage=3"],
    "own": ["--optimizer.name=adamw8bit"],
}
RUN = ["--train.max_steps=6", "--checkpoint.every=2"]


def outputs(tiny, engine, fails, status=1, mode="--checkpoint.background=true"):
    """What both ranks said, once they have ended by themselves, rank 0 with `status`."""
    ranks = start_world(2, SCRIPT, "train", str(tiny), *RUN, *ENGINES[engine], mode, FAILS=fails)
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [status, -9 if fails == "kill" else status], said
    return said


def saved(tmp_path):
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.fault("F33")
@pytest.mark.fault("F18")
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_that_fails_on_one_rank(tiny, tmp_path, engine):
    """It has taken part in the exchanges, so all agree: the sentence is said once, and nothing is left behind."""
    said = outputs(tiny, engine, "copy")
    sentence = "process 1: the checkpoint of step 4 could not be written (NotImplementedError: Cannot copy"
    assert sentence in said[0]
    assert "could not be written" not in said[1]
    assert saved(tmp_path) == ["step-00000002"]


@pytest.mark.fault("F33")
@pytest.mark.fault("F18")
@pytest.mark.parametrize("engine", ["own", *(pytest.param(f"stage {n}", marks=pytest.mark.slow) for n in (1, 3))])
def test_an_exchange_that_fails_on_one_rank(tiny, tmp_path, engine):
    """The others are in it, so that rank ends, says why, and they follow."""
    said = outputs(tiny, engine, "before")
    assert "could not be gathered for a checkpoint (MemoryError: broken on one rank)" in said[1]
    assert "Traceback" not in said[0]
    assert "step-00000002" in saved(tmp_path)
    assert "step-00000004" not in saved(tmp_path)


@pytest.mark.slow
@pytest.mark.fault("F33")
def test_a_tensor_that_nobody_exchanges(tiny, tmp_path):
    said = outputs(tiny, "stage 0", "before")
    assert "the checkpoint of step 4 could not be written (MemoryError: broken on one rank)" in said[0]
    assert saved(tmp_path) == ["step-00000002"]


@pytest.mark.slow
@pytest.mark.fault("F33")
def test_a_copy_that_fails_in_the_foreground(tiny, tmp_path):
    said = outputs(tiny, "stage 1", "copy", mode="--checkpoint.background=false")
    assert "the checkpoint of step 4 could not be written (NotImplementedError: Cannot copy" in said[0]
    assert saved(tmp_path) == ["step-00000002"]


@pytest.mark.fault("F11")
@pytest.mark.parametrize("mode", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_where_rank_1_writes(tiny, tmp_path, mode):
    """In the background, its thread tells rank 0's, which leaves nothing behind; the run and the next save go on."""
    said = outputs(tiny, "stage 0", "disk", status=0, mode=f"--checkpoint.background={mode}")
    full = "step 4: CHECKPOINT NOT WRITTEN ([Errno 28] No space left on device); older ones are untouched, training"
    assert full in said[0]
    assert saved(tmp_path) == ["step-00000002", "step-00000006"]


@pytest.mark.slow
@pytest.mark.fault("F17")
@pytest.mark.fault("F3")
def test_a_rank_that_is_killed_while_it_writes(tiny, tmp_path):
    """Rank 0 does not wait for its files, and a resume on one process goes on from the save before."""
    outputs(tiny, "stage 0", "kill")
    assert saved(tmp_path)[0] == "step-00000002"
    assert not (tmp_path / "run" / "checkpoints" / "step-00000004").exists()
    assert train_here(tiny, *RUN) == 0
    assert saved(tmp_path) == ["step-00000002", "step-00000004", "step-00000006"]
