"""The check on a GPU, in miniature on a CPU: every part's own work, and what becomes of a part that fails."""

import json
import subprocess
import sys
import time

import pytest
import torch

from pretrain.bench import gpu_7b, gpu_kernels, gpu_training
from pretrain.bench.gpu_check import PARTS, run_parts
from pretrain.bench.kernels.run import CASES
from pretrain.bench.part import ROOT, Check, Done, Failed, Part, Skipped

SMALL = ["--model.dim=32", "--model.n_layers=2", "--model.n_heads=2", "--model.ffn_dim=53", "--model.vocab_size=320"]
SMALL += ["--linear.rank=4", "--linear.density=0.1", "--train.micro_batch_size=2", "--train.global_batch_size=4"]
SMALL += ["--train.seq_len=16", "--train.dtype=fp32", "--eval.tokens=64", "--eval.prompts=[]"]


@pytest.fixture
def check(tmp_path) -> Check:
    (tmp_path / "work").mkdir()
    return Check(tmp_path / "work", device="cpu", repeats=3, turns=1, steps=4, small=SMALL)


def record(folder) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_repeats_and_training_pass_on_a_cpu(check, corpus, tmp_path):
    check.data = corpus
    parts = [Part("equal bits", gpu_kernels.repeats), Part("training", gpu_training.parity)]
    assert run_parts(check, parts, tmp_path / "results") == 0
    found = record(tmp_path / "results")
    assert found["failures"] == found["skipped"] == {}
    assert found["hardware"]["name"]
    assert found["versions"]["torch"] == torch.__version__
    bits, training = found["parts"]["equal bits"], found["parts"]["training"]
    assert bits["repeats"] == 3
    with_kernels = {path.parent.name for path in (ROOT / "kernels").glob("*/in_triton.py")} | {"tile_gather"}
    assert len(with_kernels) >= 8
    assert {op for op in with_kernels if not any(op in name for name in bits["different"])} == set()
    assert training["loss_difference"] < 1e-3
    for name in ("kernels", "reference", "dense"):
        assert training[name]["tokens_per_second"] > 0
        assert training[name]["peak_resident_bytes"] > 0
        assert training[name]["peak_memory_bytes"] is None, "a CPU counts no tensors"
    assert training["dense"]["parameters"] != training["kernels"]["parameters"]


@pytest.mark.slow
def test_a_resume_passes_on_a_cpu(check, corpus, tmp_path):
    check.data = corpus
    assert run_parts(check, [Part("resume", gpu_training.resume)], tmp_path / "results") == 0
    assert record(tmp_path / "results")["parts"]["resume"]["bit_exact"]


@pytest.mark.slow
def test_saves_in_the_background_pass_on_a_cpu(check, corpus, tmp_path):
    check.data = corpus
    assert run_parts(check, [Part("background saves", gpu_training.background)], tmp_path / "results") == 0
    assert record(tmp_path / "results")["parts"]["background saves"]["differ"] == []


def test_saves_that_differ_fail_the_check(check, monkeypatch):
    monkeypatch.setattr(gpu_training, "_train", lambda check, config, name, *a, **k: name)
    monkeypatch.setattr(gpu_training, "losses", lambda run: dict.fromkeys(range(99), 1.0))
    monkeypatch.setattr(gpu_training, "_tensors", lambda run, step: {"file": run if step == 2 else ""})
    with pytest.raises(Failed, match=r"of 1 of \d+ steps differ") as failed:
        gpu_training.background(check)
    assert failed.value.figures["differ"] == [2]


def test_a_failing_part_is_recorded_and_the_rest_runs(check, tmp_path):
    def fails(check):
        raise Failed("a sentence", figure=3)

    def breaks(check):
        raise KeyError("unforeseen")

    def skips(check):
        raise Skipped("a package is missing", figure=5)

    parts = [Part("fails", fails), Part("breaks", breaks), Part("skips", skips)]
    parts.append(Part("passes", lambda check: {"figure": 7}))
    assert run_parts(check, parts, tmp_path) == 1
    found = record(tmp_path)
    assert found["failures"] == {"fails": "a sentence", "breaks": "KeyError: 'unforeseen'"}
    assert found["skipped"] == {"skips": "a package is missing"}
    assert found["parts"]["fails"]["figure"] == 3
    assert found["parts"]["skips"]["figure"] == 5
    assert found["parts"]["passes"]["figure"] == 7
    assert run_parts(check, [Part("skips", skips)], tmp_path / "other") == 0


def test_a_part_without_time_is_a_failure(check, tmp_path):
    check.deadline = time.monotonic() - 1
    late = [Part("late", lambda check: {}), Part("late timing", lambda check: {}, proof=False)]
    assert run_parts(check, late, tmp_path) == 1
    assert "no time" in record(tmp_path)["failures"]["late"]
    assert "no time" in record(tmp_path)["skipped"]["late timing"]


def test_timings_come_after_every_proof():
    proofs = [part.proof for part in PARTS]
    assert proofs == sorted(proofs, reverse=True)
    groups = (gpu_7b.parts(), gpu_7b.offload_parts(), gpu_7b.products_parts())
    recipes, offload, products = ([part.name for part in parts] for parts in groups)
    later = ["timings", "optimizer timings", *offload, *products]
    assert [part.name for part in PARTS if not part.proof] == [*recipes, *later]
    assert list(CASES)[:3] == ["sparse_low_rank_linear", "eight_bit_linear", "block_low_rank_linear"]


def test_a_command_that_hangs_is_killed_with_its_children(check):
    child = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    begun = time.monotonic()
    done = check.python("-c", child, limit=2)
    assert time.monotonic() - begun < 20
    assert done.status is None
    assert done.stdout == "begun\n"
    with pytest.raises(Failed, match="the child did not finish in time"):
        done.require("the child")


def test_different_bits_and_losses_fail(check, monkeypatch):
    monkeypatch.setattr(Check, "python", lambda *a, **k: Done(0, '{"decompress": 2, "tile_gather": 0}', ""))
    with pytest.raises(Failed, match=r"different bits: decompress$"):
        gpu_kernels.repeats(check)
    losses = {"kernels": 2.03, "reference": 2.0, "dense": 1.0}
    monkeypatch.setattr(gpu_training, "corpus", lambda check: check.work)
    monkeypatch.setattr(gpu_training, "_train", lambda check, config, name, *a, **k: name)
    monkeypatch.setattr(gpu_training, "_figures", lambda run, steps: {"loss": losses[run]})
    with pytest.raises(Failed, match=r"after 4 steps is off by 0\.03"):
        gpu_training.parity(check)
    losses["kernels"] = float("nan")
    with pytest.raises(Failed, match="off by nan"):
        gpu_training.parity(check)
    losses["kernels"] = 2.01
    assert gpu_training.parity(check)["loss_difference"] == pytest.approx(0.01)


def test_one_operation_that_fails_leaves_the_timings_of_the_others(check, monkeypatch):
    def python(self, *arguments, limit):
        op = arguments[arguments.index("--only") + 1]
        return Done(1, "", "it broke") if op == "decompress" else Done(0, f'[{{"name": "{op}"}}]', "")

    monkeypatch.setattr(Check, "python", python)
    with pytest.raises(Failed, match=r"failed for decompress$") as raised:
        gpu_kernels.timings(check)
    assert [row["name"] for row in raised.value.figures["rows"]] == [op for op in CASES if op != "decompress"]
    assert "it broke" in raised.value.figures["failures"]["decompress"]


def test_operations_share_the_time_that_is_left(check, monkeypatch):
    """300 s, of which the optimizers have a third. Each operation takes 60 s; the fourth is cut off."""
    now, limits = [0.0], []
    monkeypatch.setattr(Check, "seconds_left", property(lambda self: 300 - now[0]))

    def python(self, *arguments, limit):
        limits.append(limit)
        now[0] += min(60, limit)
        return Done(0, '[{"ratio": 1}]', "") if limit >= 60 else Done(None, "", "")

    monkeypatch.setattr(Check, "python", python)
    with pytest.raises(
        Skipped,
        match=r"did not suffice for low_rank_update, adam8bit, fira_update, decompress, quant, tile_gather, attention$",
    ) as raised:
        gpu_kernels.timings(check)
    assert limits == pytest.approx([200, 140, 80, 20])
    assert len(raised.value.figures["rows"]) == 3
    assert check.seconds_left == pytest.approx(100)


def test_optimizers_are_timed_where_there_is_such_a_command(check, monkeypatch):
    outcomes = {}
    monkeypatch.setattr(Check, "python", lambda self, *a, limit: outcomes["help" if "--help" in a else "run"])
    outcomes["help"] = Done(2, "", "invalid choice: 'optimizers'")
    with pytest.raises(Skipped, match="has no bench optimizers"):
        gpu_kernels.optimizer_timings(check)
    outcomes |= {"help": Done(0, "usage", ""), "run": Done(0, '[{"ratio": 1}]', "")}
    assert gpu_kernels.optimizer_timings(check) == {"rows": [{"ratio": 1}]}
    outcomes["run"] = Done(None, "", "galore")
    with pytest.raises(Skipped, match="time did not suffice"):
        gpu_kernels.optimizer_timings(check)
    outcomes["run"] = Done(1, "", "it broke")
    with pytest.raises(Failed, match="bench optimizers ended with status 1"):
        gpu_kernels.optimizer_timings(check)


def test_the_command_that_times_optimizers_exists(check):
    assert check.python("-m", "pretrain", "bench", "optimizers", "--help", limit=60).status == 0


def test_pytest_outcomes_are_counted(check, monkeypatch, tmp_path):
    """On a folder of tests with one failure in place of the kernels'."""
    (tmp_path / "test_two.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    monkeypatch.setattr(gpu_kernels, "TESTS", str(tmp_path))
    with pytest.raises(Failed, match="status 1") as raised:
        gpu_kernels.triton_tests(check)
    assert (raised.value.figures["passed"], raised.value.figures["failed"]) == (1, 1)
    assert "test_b" in raised.value.figures["failures"][0]


def test_what_is_missing_is_said(check, monkeypatch):
    monkeypatch.setattr(gpu_training, "NEEDED", ("deepspeed", "nowhere", "nothing"))
    with pytest.raises(Skipped, match="training needs nowhere, nothing, which are not installed"):
        gpu_training.parity(check)
    monkeypatch.setattr(gpu_kernels.shutil, "which", lambda name: None)
    with pytest.raises(Skipped, match="compute-sanitizer is not installed"):
        gpu_kernels.sanitizer(check)


def test_the_sanitizer_is_asked_and_believed(check, monkeypatch, tmp_path):
    """By a stand-in that prints its arguments."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "$@"\necho "========= ERROR SUMMARY: 0 errors"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_kernels.shutil, "which", lambda name: str(tool))
    assert gpu_kernels.sanitizer(check) == dict.fromkeys(("memcheck", "racecheck"), "ERROR SUMMARY: 0 errors")
    tool.write_text('#!/bin/sh\necho "========= ERROR SUMMARY: 2 errors"\nexit 99\n')
    with pytest.raises(Failed, match="memcheck ended with status 99"):
        gpu_kernels.sanitizer(check)


def test_the_sanitized_tests_exist():
    command = [sys.executable, "-m", "pytest", "--collect-only", *gpu_kernels.SANITIZED]
    listed = subprocess.run(command, capture_output=True, text=True, env={"TRITON_INTERPRET": "1"}, check=False)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert listed.stdout.count("test_decompress.py::") == 2
    assert listed.stdout.count("test_tile_gather.py::") == 2
