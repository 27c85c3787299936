"""Signals at every moment of a run: it ends within seconds with status 143, and the rerun ends as if without them."""

import threading
import time
from pathlib import Path

import pytest
from processes import Process, run_command, start_world
from support import logged, tensor_hashes, train_here, write_tiny

from pretrain.machine import fault, stop

SAMPLES = ["--eval.sample_tokens=4", '--eval.prompts=["ab"]']
OPTIONS = ["--train.max_steps=6", "--checkpoint.every=3", "--eval.every=2", *SAMPLES]
PLACES = {
    "opening": "stopped while the run opened",
    "micro_step:1": "stopped before the end of the first step",
    "micro_step:3": "stopped before the end of the first step",
    "micro_step:10": "stopped at step 2 with a checkpoint",
    "evaluation:2": "stopped at step 2 with a checkpoint",
    "sample:2": "stopped at step 2 with a checkpoint",
    "shard": "stopped at step 3 with a checkpoint",
}
"""Where SIGTERM comes (tiny has four micro-steps), and what is said."""
WRITING = str(Path(__file__).with_name("waiting_save.py"))
IN_C_CODE = """\
import ctypes, pathlib, sys
from pretrain.machine import stop
stop.SAME_S = 0.1
stop.listen()
pathlib.Path(sys.argv[1]).touch()
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
for _ in range(2):
    library.pthread_mutex_lock(mutex)
"""
"""A main thread that waits for itself in C for ever, where Python runs no handler, as in an exchange of NCCL's."""


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """Hashes and losses of the same run without a signal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_here(write_tiny(folder, corpus), *OPTIONS)
    return tensor_hashes(folder / "run", 6), logged(folder / "run")


@pytest.mark.fault("F14")
@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=pytest.mark.slow) if place == "micro_step:1" else place for place in PLACES]
)
def test_sigterm_anywhere(tiny, tmp_path, undisturbed, place):
    status, output = run_command("train", str(tiny), *OPTIONS, fault=place, SPARLOW_FAULT_SIGNAL="SIGTERM")
    assert status == stop.STOPPED, output
    assert PLACES[place] in output
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp.*"))
    assert train_here(tiny, *OPTIONS) == 0
    assert (tensor_hashes(tmp_path / "run", 6), logged(tmp_path / "run")) == undisturbed


@pytest.mark.fault("F14", "F15")
@pytest.mark.parametrize(
    ("place", "rank"),
    [
        ("micro_step:4", 1),
        *(pytest.param("opening", rank, marks=pytest.mark.slow) for rank in (0, 1)),
        *(pytest.param(place, 1, marks=pytest.mark.slow) for place in ("evaluation:2", "sample:2")),
        *(pytest.param(place, 0, marks=pytest.mark.slow) for place in ("micro_step:1", "shard")),
    ],
)
def test_sigterm_to_one_of_two_processes(tiny, tmp_path, place, rank):
    """Both end at the same place, with one sentence."""
    signalled = {"SPARLOW_FAULT": f"{place}/{rank}", "SPARLOW_FAULT_SIGNAL": "SIGTERM"}
    options = ["-m", "pretrain", "train", str(tiny), *OPTIONS[1:]]
    # Steps enough that the run does not end before they have agreed.
    stopped = end_of(start_world(2, *options, "--schedule.total_steps=1000000", **signalled))
    assert [status for status, _ in stopped] == [stop.STOPPED] * 2, stopped
    assert sum("stopped" in output for _, output in stopped) == 1, stopped
    assert "Traceback" not in stopped[0][1] + stopped[1][1]


DENSE = ["--linear.name=dense", "--optimizer.rank=8", "--optimizer.update_proj_gap=3"]
ENGINES = {
    "zero1": ["--parallel.zero_stage=1"],
    "zero2": ["--parallel.zero_stage=2"],
    "zero3": ["--parallel.zero_stage=3"],
    "bf16": ["--train.dtype=bf16", "--optimizer.weights=bf16"],
    "galore": [*DENSE, "--optimizer.name=galore_adamw"],
    "fira": [*DENSE, "--optimizer.name=fira"],
    "apollo": [*DENSE, "--optimizer.name=apollo"],
    "subtrack": [*DENSE, "--optimizer.name=subtrack"],
    "ldadam": ["--linear.name=dense", "--optimizer.name=ldadam", "--optimizer.rank=8"],
    "int8": [*DENSE, "--optimizer.name=q_galore"],
}


@pytest.mark.fault("F14", "F34")
@pytest.mark.parametrize(
    "engine", [name if name == "galore" else pytest.param(name, marks=pytest.mark.slow) for name in ENGINES]
)
def test_the_sums_of_a_step_that_was_left_are_dropped(tiny, tmp_path, monkeypatch, engine):
    """Left after two of the four micro-steps of the fourth step, where projectors are made anew."""
    options = [*ENGINES[engine], "--train.max_steps=5"]
    train_here(tiny, *options, "--checkpoint.every=3", f"--run.dir={tmp_path}/straight")
    fault._visits.clear()
    monkeypatch.setenv("SPARLOW_FAULT", "micro_step:15")
    monkeypatch.setenv("SPARLOW_FAULT_SIGNAL", "SIGTERM")
    assert train_here(tiny, *options) == stop.STOPPED
    monkeypatch.delenv("SPARLOW_FAULT")
    assert tensor_hashes(tmp_path / "run", 3) == tensor_hashes(tmp_path / "straight", 3)
    assert train_here(tiny, *options) == 0
    assert tensor_hashes(tmp_path / "run", 5) == tensor_hashes(tmp_path / "straight", 5)
    assert logged(tmp_path / "run") == logged(tmp_path / "straight")


@pytest.mark.fault("F34")
def test_a_step_of_a_thousand_micro_steps_is_left_at_once(tiny, tmp_path):
    """At the next micro-step: the step does not end, and its sums are dropped."""
    options = ["--train.global_batch_size=1024", "--train.micro_batch_size=1"]
    status, output = run_command("train", str(tiny), *options, fault="micro_step:20", SPARLOW_FAULT_SIGNAL="SIGTERM")
    assert status == stop.STOPPED, output
    assert "stopped before the end of the first step" in output
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.fault("F16")
def test_a_second_signal_ends_a_save(tiny, tmp_path):
    """Even one that hangs in a system call; the checkpoint before is the way on."""
    process = Process(WRITING, "train", str(tiny), "--checkpoint.every=2", WAITS_AT="step-00000004")
    wait_for(tmp_path / "waits", process)
    process.terminate()
    time.sleep(stop.SAME_S + 0.5)
    assert process.poll() is None
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == stop.KILLED, output
    assert "ended at once by a second signal" in output
    assert [path.name for path in tmp_path.glob("run/checkpoints/step-*[0-9]") if "tmp" not in path.name] == [
        "step-00000002"
    ]
    assert train_here(tiny, "--train.max_steps=3") == 0


@pytest.mark.fault("F16")
def test_a_second_signal_ends_a_process_whose_main_thread_is_in_c_code(tmp_path):
    script, waits = tmp_path / "in_c_code.py", tmp_path / "waits"
    script.write_text(IN_C_CODE)
    process = Process(str(script), str(waits))
    wait_for(waits, process)
    try:
        for _ in range(60):  # a busy machine may hear several as one
            process.terminate()
            time.sleep(0.3)
            if process.poll() is not None:
                break
    finally:
        process.kill()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == stop.KILLED, output
    assert "ended at once by a second signal" in output


def wait_for(path: Path, *processes: Process) -> None:
    """Until `path` is there."""
    for _ in range(1200):
        if path.exists():
            return
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"{path} does not come")


def end_of(ranks: list[Process], timeout: float = 60) -> list[tuple[int | None, str]]:
    """Status and output of each rank; those that do not end are killed."""
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.mark.fault("F15")
def test_a_process_that_has_said_how_far_it_is_goes_no_further_until_the_place_is_known():
    stop.listen()
    stop.agree_by(lambda: None)
    try:
        assert not any(stop.due() for _ in range(3))
        assert stop.hold() == 3
        answers: list[bool] = []
        waiting = threading.Thread(target=lambda: answers.append(stop.due()))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        stop.stop_at(5)
        waiting.join(20)
        assert answers == [False]
        assert stop.due()
    finally:
        stop.agree_by(None)
