"""doctor, export, report, sample and bench where something is absent, damaged or not finite."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from support import ROOT, train_here, write_tiny

from model.errors import RunFailed
from pretrain.cli import main

needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")


def test_doctor_reports_an_empty_environment():
    """`python -S` sees no installed package."""
    command = [sys.executable, "-S", "-m", "pretrain", "doctor", "--json"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert findings["torch"]["detail"] == findings["deepspeed"]["detail"] == "not installed"
    assert findings["torch"]["fix"] == "pip install torch -c constraints.txt"


def test_doctor_without_deepspeed_still_checks_the_rest(monkeypatch):
    from pretrain.machine import doctor

    def version(name: str) -> str:
        if name == "deepspeed":
            raise doctor.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert [what for what, finding in findings.items() if finding.status == "broken"] == ["deepspeed"]
    assert findings["torchrun launcher"].status == "ok"
    assert "deepspeed engine" not in findings


def test_doctor_runs_what_it_reports(monkeypatch):
    from pretrain.machine import doctor

    with pytest.raises(doctor.Broken, match="No module named nowhere"):
        doctor._run_python("-m", "nowhere")
    with pytest.raises(doctor.Broken, match="exit status 3"):
        doctor._run_python("-c", "raise SystemExit(3)")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run of 2 steps on a corpus of its own; the corpus is in `data` beside it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(corpus, folder / "data")
    train_here(write_tiny(folder, folder / "data"), "--train.max_steps=2")
    return folder / "run"


@needs_transformers
@pytest.mark.parametrize(
    "left", [None, pytest.param("nothing", marks=pytest.mark.slow), pytest.param("no shards", marks=pytest.mark.slow)]
)
def test_export_needs_no_corpus_and_says_what_was_not_checked(finished, tmp_path, capsys, left):
    data, away = finished.parent / "data", tmp_path / "data"
    data.rename(away)
    try:
        if left is not None:
            data.mkdir()
        if left == "no shards":
            shutil.copy(away / "manifest.json", data)
        assert main(["export", str(finished), "--out", str(tmp_path / "hf")]) == 0
    finally:
        shutil.rmtree(data, ignore_errors=True)
        away.rename(data)
    assert "not checked on held-out text" in capsys.readouterr().out
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "equal token ids on 300 hard strings, but not checked on held-out text" in card


def test_a_step_is_exported_from_inside_its_run(finished, tmp_path, monkeypatch):
    """The card has the run's held-out loss wherever the path of the step's folder begins."""
    monkeypatch.chdir(finished / "checkpoints")
    assert main(["export", "step-00000002", "--out", str(tmp_path / "hf"), "--no-check"]) == 0
    assert re.search(r"held-out loss \| \d\.\d{4} nats", (tmp_path / "hf" / "README.md").read_text())


def test_export_takes_no_documents_from_another_corpus(finished):
    from pretrain.checkpoint.read import open_checkpoint
    from pretrain.using.check_texts import held_out_documents

    checkpoint, manifest = open_checkpoint(finished), finished.parent / "data" / "manifest.json"
    assert len(held_out_documents(checkpoint)) == 3
    text = manifest.read_text()
    manifest.write_text(text + "\n")
    try:
        assert held_out_documents(checkpoint) is None
    finally:
        manifest.write_text(text)


def test_held_out_documents_are_whole(finished):
    from pretrain.checkpoint.read import open_checkpoint
    from pretrain.data.manifest import load_manifest
    from pretrain.using.check_texts import held_out_documents

    documents, entry = held_out_documents(open_checkpoint(finished)), load_manifest(finished.parent / "data").val
    assert len(documents) == entry.documents
    assert sum(len(text.encode()) for text in documents) == entry.bytes


def test_the_first_text_with_other_ids_is_named(finished):
    from pretrain.checkpoint.read import open_checkpoint, tokenizer_of
    from pretrain.using.export import _require_equal_ids

    tokenizer = tokenizer_of(open_checkpoint(finished))
    ids = [tokenizer.encode("ab"), [*tokenizer.encode("a  b"), 5]]
    _require_equal_ids(tokenizer, ["ab"], ids[:1])
    with pytest.raises(RunFailed, match=r"tokenizes 'a  b' differently from SentencePiece, first at token"):
        _require_equal_ids(tokenizer, ["ab", "a  b"], ids)


def test_export_refuses_a_folder_whose_token_ids_differ(finished, tmp_path, monkeypatch):
    from pretrain.using import export

    def other_ids(folder, tokens, texts, parameters):
        return torch.zeros(()), [[5] for _ in texts], "5"

    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(export, "_ask_transformers", other_ids)
    monkeypatch.setattr(export, "_require", lambda *args: 0.0)
    with pytest.raises(RunFailed, match=r"transformers tokenizes '' differently .*; kept as .*hf\.failed-check"):
        export.export(str(finished), str(tmp_path / "hf"), dtype="fp32", overwrite=False)
    assert not (tmp_path / "hf").exists()


@pytest.mark.fault("F28")
@pytest.mark.parametrize("error", [KeyError("a weight"), KeyboardInterrupt()])
def test_export_keeps_what_it_could_not_check_under_another_name(finished, tmp_path, monkeypatch, error):
    from pretrain.using import export

    def read_back(folder):
        assert folder.is_dir()
        raise error

    monkeypatch.setattr(export, "_read_back", read_back)
    with pytest.raises(type(error)):
        export.export(str(finished), str(tmp_path / "hf"), dtype="fp32", overwrite=False)
    assert not (tmp_path / "hf").exists()
    assert type(error).__name__ in (tmp_path / "hf.failed-check" / "FAILED_CHECK.txt").read_text()


def test_export_of_a_model_that_is_no_use_says_so(finished, tmp_path, monkeypatch):
    from pretrain.checkpoint.read import Checkpoint
    from pretrain.using import export

    read = Checkpoint.read

    def read_broken(self, name):
        tensor = read(self, name)
        return tensor.fill_(float("nan")) if name == "model.norm.weight" else tensor

    monkeypatch.setattr(Checkpoint, "read", read_broken)
    with pytest.raises(RunFailed, match="the checkpoint's own logits are not finite; export an earlier step's folder"):
        export.export(str(finished), str(tmp_path / "hf"), dtype="fp32", overwrite=False)


@pytest.mark.fault("F28")
@needs_transformers
def test_export_survives_a_silent_death_of_its_check(finished, tmp_path, monkeypatch):
    from pretrain.using import export

    silent = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(export.subprocess, "run", lambda *args, **kwargs: silent)
    with pytest.raises(RunFailed, match="exit status -9"):
        export.export(str(finished), str(tmp_path / "hf"), dtype="fp32", overwrite=False)
    assert not (tmp_path / "hf").exists()


def test_report_names_runs_apart(finished, tmp_path, monkeypatch):
    from pretrain.report import write_report

    for folder in ("a", "b"):
        shutil.copytree(finished, tmp_path / folder / "run")
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    _, table, _ = write_report([run.relative_to(tmp_path) for run in runs], tmp_path / "out")
    assert [row["run"] for row in json.loads(table.read_text())] == ["a/run", "b/run"]
    monkeypatch.chdir(runs[0])
    assert main(["report", "."]) == 0
    assert [row["run"] for row in json.loads((runs[0] / "report" / "table.json").read_text())] == ["run"]


def test_report_of_a_run_that_was_killed_and_diverged(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    metrics = run / "metrics.jsonl"
    more = [{"step": 3, "train/loss": None, "train/tokens_seen": 3, "val/loss": None, "val/bits_per_byte": None}]
    metrics.write_text(metrics.read_text() + json.dumps(more[0]) + '\n{"step": 4, "train/lo')
    summary = json.loads((run / "summary.json").read_text()) | {"val_loss": None}
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(run)]) == 0
    assert "<td>-</td>" in (run / "report" / "index.html").read_text()
    metrics.write_text('{"step"\n' + metrics.read_text())
    assert main(["report", str(run)]) == 2
    assert "line 1 is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["nan", "inf", "-0.5"])
def test_sample_refuses_a_temperature_that_is_none(finished, capsys, temperature):
    assert main(["sample", str(finished), f"--temperature={temperature}"]) == 2
    assert "--temperature must be a finite number" in capsys.readouterr().err


BENCH = ["--model.dim=32", "--model.n_layers=1", "--model.n_heads=2", "--model.ffn_dim=48", "--model.vocab_size=64"]
BENCH += ["--linear.rank=4", "--train.micro_batch_size=1", "--train.seq_len=8"]


@pytest.mark.slow
@needs_transformers
def test_bench_train_prints_rows(capsys):
    assert main(["bench", "train", "--turns", "1", "--steps", "1", "--json", *BENCH]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = {"name", "shape", "dtype", "device", "ours_ms", "reference", "reference_ms", "ratio"}
    assert all(set(row) == keys for row in rows)
    assert {row["name"] for row in rows} == {"sparlow", "sparlow dense"}
    assert all(row["ours_ms"] > 0 and row["reference_ms"] > 0 for row in rows)


def test_bench_sample_prints_rows(monkeypatch, capsys):
    """Of both precisions, the slices being of as many tokens as is asked for."""
    monkeypatch.setattr("pretrain.machine.memory.keep_freed_memory", lambda: None)  # of this process, for ever
    arguments = ["bench", "sample", "--turns", "1", "--tokens", "12", "--dtype", "fp32", "bf16", *BENCH]
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["dtype"]) for row in rows] == [("sparse_low_rank", "fp32"), ("sparse_low_rank", "bf16")]
    assert all(row["shape"] == "d32 L1 ffn48 V64, 12 tokens" for row in rows)
    assert all(row["ratio"] == pytest.approx(row["ours_ms"] / row["reference_ms"]) for row in rows)
    assert main(arguments) == 0
    assert "whole text per token" in capsys.readouterr().out
    assert main([*arguments, "--tokens=0"]) == 2
    assert "--tokens must be at least 1" in capsys.readouterr().err


def test_bench_kernels_prints_rows(capsys):
    arguments = ["bench", "kernels", "--device", "cpu", "--only", "tile_gather", "--turns", "1", "--dtype", "fp32"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    keys = {"name", "shape", "dtype", "device", "ours_ms", "reference", "reference_ms", "ratio"}
    assert all(set(row) == keys for row in rows)
    assert all(row["ours_ms"] > 0 and row["reference_ms"] > 0 for row in rows)
    assert "tile_gather, 512x512" in captured.err
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["name", "shape", "dtype"]
    assert len([line for line in lines if line.startswith("tile_gather")]) == len(rows)


def test_bench_kernels_says_how_to_measure_a_gpu(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "kernels", "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert main(["bench", "kernels", "--only", "tile_gather", "--turns", "1", "--dtype", "fp32"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].count("sparlow bench kernels --device cuda") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "nothing"], "--only nothing: there is no such operation; choose from"),
        (["--turns", "0"], "--turns must be at least 1"),
        (["--only", "tile_gather", "--store"], "does not go with --only"),
        (["--model.dim=32"], "--model.dim=32: unknown argument"),
    ],
)
def test_bench_kernels_refuses_in_a_sentence(arguments, sentence, capsys):
    assert main(["bench", "kernels", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_bench_kernels_keeps_what_it_measured(tmp_path, monkeypatch, capsys):
    import torch

    from kernels import measured
    from pretrain.bench.kernels import run, tiles

    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "CASES", {"tile_gather": tiles.gather_cases})
    monkeypatch.setattr(run, "ALTERNATIVES", [])
    assert main(["bench", "kernels", "--device", "cpu", "--dtype", "fp32", "--turns", "1", "--store", "--json"]) == 0
    stored = measured.load(torch.device("cpu"))
    assert stored is not None
    assert stored["rows"] == json.loads(capsys.readouterr().out)
    assert {"hardware", "versions", "commit", "date"} <= stored.keys()


def test_bench_builds_what_training_builds():
    """Weights in bf16 and recomputed activations are the configuration's, not the benchmark's."""
    import torch

    from pretrain.config import load_config
    from pretrain.loop.build import build

    options = [
        *BENCH,
        "--growth.enabled=false",
        "--train.dtype=bf16",
        "--optimizer.weights=bf16",
        "--train.checkpoint_every_layers=1",
    ]
    model = build(load_config(ROOT / "configs" / "quickstart.toml", options), torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.compute_dtype == torch.bfloat16
    assert model.checkpoint_every == 1
