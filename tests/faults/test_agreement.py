"""A rank that fails, is killed or is stopped ends all ranks within seconds, with one sentence that says why."""

import contextlib
import re
import signal
from pathlib import Path

import psutil
import pytest
from faults.test_stopping import end_of, wait_for
from processes import start_world, torchrun
from support import logged, tensor_hashes, train_here

SCRIPT = str(Path(__file__).with_name("one_rank_fails_at.py"))
PLACES = {
    "data": ("pretrain.data.dataset TokenDataset.batch", 2),
    "step": ("model.transformer Transformer.forward", 6),
    "update": ("pretrain.engine.zero ZeroEngine.update", 2),
    "metrics": ("pretrain.loop.metrics Metrics.write", 2),
    "build": ("pretrain.loop.run build", 1),
    "engine": ("pretrain.loop.run build_engine", 1),
    "open_data": ("pretrain.loop.run _open_data", 1),  # an agreed place
    "tokenizer": ("pretrain.data.dataset open_tokenizer", 1),
}
"""Where a rank fails, and at which call."""
SAID = {
    "user": ("broken on one rank; mend it", 2),
    "program": ("ValueError: broken on one rank", 1),
    "disk": ("OSError: [Errno 5] broken on one rank", 1),
    "stubborn": ("Stubborn: broken on one rank", 1),
}
"""What is said of each kind of error, and the status."""


@pytest.mark.fault("F18")
@pytest.mark.parametrize(
    ("place", "rank", "kind"),
    [
        ("step", 0, "program"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("data", 1, "disk"),
                ("update", 1, "program"),
                ("metrics", 0, "program"),
                ("build", 1, "user"),
                ("engine", 0, "user"),
                ("open_data", 1, "stubborn"),
                ("open_data", 1, "user"),
                ("open_data", 0, "program"),
                ("tokenizer", 1, "user"),
            ]
        ),
    ],
)
def test_one_rank_fails(tiny, place, rank, kind):
    where, call = PLACES[place]
    world = start_world(2, SCRIPT, "train", str(tiny), FAILS=f"{rank} {where} {kind}", CALL=str(call))
    require_one_sentence(end_of(world), *SAID[kind], rank)


@pytest.mark.fault("F18")
@pytest.mark.slow
@pytest.mark.parametrize(("rank", "kind"), [(1, "user"), (0, "program")])
def test_one_rank_fails_to_restore(tiny, rank, kind):
    train_here(tiny, "--train.max_steps=1")
    where = "pretrain.checkpoint.read Checkpoint.read"
    world = start_world(2, SCRIPT, "train", str(tiny), FAILS=f"{rank} {where} {kind}")
    require_one_sentence(end_of(world), *SAID[kind], rank)


@pytest.mark.fault("F18")
@pytest.mark.slow
@pytest.mark.parametrize("function", ["pretrain.using.evaluate _micro_batch", "pretrain.using.generate _draw"])
def test_a_failed_evaluation_or_sample_on_one_rank_ends_nothing(tiny, tmp_path, function):
    options = ["--train.max_steps=2", "--eval.every=1", '--eval.prompts=["ab"]', "--eval.sample_tokens=4"]
    ended = end_of(start_world(2, SCRIPT, "train", str(tiny), *options, FAILS=f"0 {function} program"))
    assert [status for status, _ in ended] == [0, 0], ended
    assert "ValueError: broken on one rank); training goes on" in ended[0][1]
    assert tensor_hashes(tmp_path / "run", 2)


@pytest.mark.fault("F17", "F18")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named(tiny, tmp_path, rank):
    """Rank 0 too, which holds the store that they talk by."""
    ranks = start_world(2, "-m", "pretrain", "train", str(tiny), "--schedule.total_steps=1000000")
    wait_for(tmp_path / "run" / "metrics.jsonl", *ranks)
    ranks[rank].kill()
    ended = end_of(ranks)
    assert [status for status, _ in ended] == ([-9, 1] if rank == 0 else [1, -9]), ended
    assert f"sparlow: process {rank} ended without a word (killed, or out of memory?)" in ended[1 - rank][1]
    assert "Traceback" not in ended[1 - rank][1]


@pytest.mark.fault("F17")
@pytest.mark.slow
def test_torchrun_heals_a_killed_rank(tiny, tmp_path):
    """The restarted processes find the store of the dead ones, their addresses in it, and the lock of the run."""
    options = ["train", str(tiny), "--train.max_steps=6", "--checkpoint.every=2", "--checkpoint.background=false"]
    fault = {"SPARLOW_FAULT": "micro_step:7/1"}  # struck in every start, each two steps on
    result = torchrun(2, "-m", "pretrain", *options, launcher=["--max-restarts=2"], **fault)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"resuming .* at step (\d+)", result.stdout) == ["2", "4"]
    assert len(logged(tmp_path / "run")) == 6


@pytest.mark.fault("F46")
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_stopped_rank_ends_the_run(tiny, tmp_path, rank):
    """SIGSTOP: nothing is closed, no exchange fails, and nothing answers any more."""
    silence = "--parallel.timeout_minutes=0.1"
    ranks = start_world(2, "-m", "pretrain", "train", str(tiny), "--schedule.total_steps=1000000", silence)
    wait_for(tmp_path / "run" / "metrics.jsonl", *ranks)
    ranks[rank].send_signal(signal.SIGSTOP)
    try:
        (status, output), *_ = end_of([ranks[1 - rank]])
        assert status == 1, output
        assert f"process {rank} gave no sign of life for 6 s (parallel.timeout_minutes)" in output
        assert "Traceback" not in output
        ranks[rank].send_signal(signal.SIGCONT)
        status, output = end_of([ranks[rank]])[0]
        assert status == 1, output
    finally:
        ranks[rank].kill()


@pytest.mark.fault("F46")
@pytest.mark.slow
def test_all_ranks_suspended_and_continued_go_on(tiny, tmp_path):
    """As a scheduler does that lends the machine to another job: that silence counts for nobody."""
    silence = "--parallel.timeout_minutes=0.05"
    ranks = start_world(2, "-m", "pretrain", "train", str(tiny), "--schedule.total_steps=1000000", silence)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics, *ranks)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in ranks:
            rank.send_signal(number)
        with contextlib.suppress(psutil.TimeoutExpired):
            psutil.Process(ranks[0].pid).wait(6)
    assert [rank.poll() for rank in ranks] == [None, None]
    ranks[0].terminate()
    assert [status for status, _ in end_of(ranks)] == [143, 143]


def require_one_sentence(ended, sentence: str, status: int, rank: int) -> None:
    """All ranks have ended with `status`, one has said the sentence, and a traceback is there at most once."""
    output = "".join(text for _, text in ended)
    assert [status for status, _ in ended] == [status] * len(ended), ended
    said = [line for line in output.splitlines() if line.startswith("sparlow")]
    assert len(said) == 1, output
    assert said[0].endswith(
        sentence if rank == 0 and "train" in said[0].split(":")[0] else f"process {rank}: {sentence}"
    )
    lost = ("Connection closed", "pair.cc", "destroy_process_group")
    assert not any(text in output for text in lost), output
    assert output.count("Traceback") <= (2 if status == 1 else 0), output  # a chain of two errors
    assert "Traceback" not in ended[1 - rank][1]
