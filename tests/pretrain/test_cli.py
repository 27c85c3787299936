"""The command line: help, exit codes, and one sentence for a user's mistake with nothing left behind."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from processes import run_command
from support import ROOT, train_here, write_tiny

from pretrain.cli import COMMANDS, main


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command prints."""
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith(f"sparlow {arguments[0]}: ")
    return error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example: sparlow {command}" in " ".join(capsys.readouterr().out.split())


def test_help_is_fast():
    """Nothing heavy is imported before a command needs it."""
    started = time.perf_counter()
    code = (
        "import sys; sys.argv[1:] = ['--help']\ntry:\n    from pretrain.cli import main; main()\nexcept SystemExit:\n"
    )
    code += "    pass\nprint(sorted(m for m in ('torch', 'deepspeed', 'pydantic', 'numpy') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - started < 5  # 0.05 s on an idle machine


def test_unknown_arguments_and_commands(capsys, tiny):
    assert "unknown argument" in refused(capsys, "eval", "somewhere", "--bogus")
    assert "--seq-len: unknown argument" in refused(capsys, "train", str(tiny), "--seq-len", "8")
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train.seq_len", "64"], "--train.seq_len 64: write --train.seq_len=64;"),
        (["--run.dir", "my run"], "--run.dir my run: write --run.dir='my run';"),
        (["--optimizer.lr", "-1e-3"], "--optimizer.lr -1e-3: write --optimizer.lr=-1e-3;"),
        (["--train.seq_len", "=", "64"], "write --train.seq_len=64;"),
        (["--train.seq_len=", "64"], "write --train.seq_len=64;"),
        (["--seed", "3"], "--seed: unknown argument; did you mean --run.seed=3?"),
        (["--seed=3"], "--seed=3: unknown argument; did you mean --run.seed=3?"),
        (["--seq-len", "8"], "did you mean --train.seq_len=8?"),
        (["--lr=1"], "did you mean --optimizer.lr=1 or --growth.lr=1?"),
        (["-train.seq_len=64"], "-train.seq_len=64: write --train.seq_len=64;"),
        (["-train.seq_len", "64"], "-train.seq_len: write --train.seq_len=64;"),
        (["train.seq_len=64"], "train.seq_len=64: write --train.seq_len=64;"),
        (["--eval.prompts=['a',", "'b']"], "quote both:"),
        (["--run.dir"], "--run.dir: expected --section.key=value"),
    ],
)
def test_a_key_written_in_another_way_is_told_the_right_one(capsys, tiny, arguments, said):
    for command in ("train", "plan"):
        assert said in refused(capsys, command, str(tiny), *arguments)


def test_a_value_after_a_space_is_not_taken_for_the_configuration(capsys, tiny):
    assert "write --train.seq_len=64;" in refused(capsys, "train", "--train.seq_len", "64", str(tiny))
    assert "only CONFIG.toml has such keys" in refused(capsys, "eval", "somewhere", "--train.seq_len", "64")


def test_local_rank_of_the_deepspeed_launcher_is_accepted(capsys):
    assert main(["--local_rank=0", "train", "--print-config"]) == 0
    assert "[schedule]" in capsys.readouterr().out


def test_print_config_shows_overrides_and_reads_back(capsys, tiny, tmp_path):
    assert main(["train", str(tiny), "--print-config", "--optimizer.lr=0.25"]) == 0
    copy = tmp_path / "copy.toml"
    copy.write_text(capsys.readouterr().out)
    assert "lr = 0.25" in copy.read_text()
    assert main(["train", str(copy), "--print-config"]) == 0


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--data.path=nowhere"], "nowhere"),
        (["--train.seq_len=32", "--train.global_batch_size=100000"], "corpus too short"),
        (["--model.vocab_size=100"], "model.vocab_size 100 is smaller than the tokenizer"),
        (["--model.max_seq_len=100000", "--train.seq_len=100000"], "corpus too short"),
        (["--run.dir={tmp}/file/run"], "run.dir"),
        (["--linear.rank=64"], "linear.rank 64 exceeds the smaller side"),
        (["--optimizer.lr=nan"], "optimizer.lr"),
        (["--train.micro_batch_size=3"], "train.global_batch_size 8 is not a multiple"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(capsys, tiny, tmp_path, overrides, expected):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    assert expected in refused(capsys, "train", str(tiny), *(text.format(tmp=tmp_path) for text in overrides))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", ["truncate", "tokenizer", "manifest"])
def test_a_damaged_corpus_is_one_sentence(capsys, corpus, tmp_path, damage):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    tiny = write_tiny(tmp_path, data)
    if damage == "truncate":
        shard = next(data.glob("train-*.bin"))
        shard.write_bytes(shard.read_bytes()[:-3])
    elif damage == "tokenizer":
        (data / "tokenizer.model").write_bytes(b"not a tokenizer")
    else:
        (data / "manifest.json").unlink()
    assert "prepare" in refused(capsys, "train", str(tiny))
    assert not (tmp_path / "run").exists()


def test_a_real_process_prints_no_traceback(tiny):
    status, output = run_command("train", str(tiny), "--optimizer.lr=-1")
    assert status == 2
    assert "Traceback" not in output
    assert "optimizer.lr" in output


@pytest.mark.parametrize("command", ["eval", "sample", "export"])
def test_a_missing_checkpoint_is_one_sentence(capsys, tmp_path, command):
    extra = ["--out", str(tmp_path / "out")] if command == "export" else []
    assert "no checkpoint here" in refused(capsys, command, str(tmp_path), *extra)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run of 8 steps."""
    folder = tmp_path_factory.mktemp("finished")
    options = ["--train.max_steps=8", "--eval.every=4", "--eval.prompts=['ab cd']", "--metrics.tensorboard=true"]
    train_here(write_tiny(folder, corpus), *options, "--metrics.every=4")
    return folder / "run"


def test_what_a_run_leaves_for_other_programs(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {
        *("step", "tokens_seen", "train_seconds", "tokens_per_second", "val_loss", "bits_per_byte", "parameters"),
        *("trainable_parameters", "flops", "peak_memory_bytes", "planned_memory_bytes", "growth_stages"),
        *("peak_reserved_bytes", "peak_resident_bytes", "growths"),
        *("skipped_steps", "skips", "spikes", "rewinds", "sources"),
        *("low_rank_matrices", "reduced_bytes_per_step", "full_gradient_bytes", "dtype"),
        *("versions", "device", "flops_dense_equivalent", "stages", "origin", "error"),
    }
    assert (summary["step"], summary["tokens_seen"], summary["dtype"]) == (8, 8 * 8 * 16, "fp32")
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 4, 8]
    assert {"train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_s"} <= records[0].keys()
    assert summary["peak_memory_bytes"] is summary["peak_reserved_bytes"] is None, "a CPU counts no tensors"
    assert "mem/peak_gib" not in records[0]
    assert summary["peak_resident_bytes"] >= records[0]["mem/peak_resident_gib"] * 2**30
    assert (summary["growth_stages"], summary["growths"]) == (len(summary["stages"]), 0)
    assert {"val/loss", "val/ppl", "val/bits_per_byte"} <= records[1].keys()
    manifest = json.loads((finished / "checkpoints" / "step-00000008" / "manifest.json").read_text())
    assert {"format_version", "step", "tokens_seen", "files", "config_hash"} <= manifest.keys()
    assert (finished / "checkpoints" / "latest").read_text() == "step-00000008\n"


def test_tensorboard_has_the_same_figures(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    logged = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert logged == [(r["step"], pytest.approx(r["train/loss"])) for r in records]
    assert [event.step for event in board.Scalars("val/bits_per_byte")] == [4, 8]


def test_eval_agrees_with_the_run(finished, capsys):
    assert main(["eval", str(finished), "--json", "--tokens", "512"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"step", "loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    summary = json.loads((finished / "summary.json").read_text())
    assert figures["loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert figures["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], rel=1e-6)


def test_eval_says_where_bytes_are_counted_from_tokens(finished, corpus, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(corpus, old)
    manifest = json.loads((old / "manifest.json").read_text())
    for split in ("train", "val"):
        (old / manifest[split].pop("text_bytes")["name"]).unlink()
    (old / "manifest.json").write_text(json.dumps(manifest))
    for more, notes in ([], 0), (["--data", str(old)], 2):
        assert main(["eval", str(finished), "--json", "--tokens", "64", *more]) == 0
        assert capsys.readouterr().err.count("note: ") == notes


def test_sample_is_repeatable_and_seeded(finished, capsys):
    def sample(*extra: str) -> str:
        assert main(["sample", str(finished), "--prompt", "ab cd", "--tokens", "12", "--json", *extra]) == 0
        return json.loads(capsys.readouterr().out)[0]["text"]

    first = sample()
    assert first.startswith("ab cd")
    assert sample() == first
    assert sample("--seed", "1") != first
    assert sample("--temperature", "0") == sample("--temperature", "0", "--seed", "5")
    assert "--temperature" in refused(capsys, "sample", str(finished), "--temperature", "-1")


def test_export_checks_itself(finished, capsys, tmp_path):
    out = tmp_path / "hf"
    assert main(["export", str(finished), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["max_logit_difference"] < 1e-5
    if report["transformers"]:
        assert report["max_logit_difference_transformers"] < 1e-4
        assert report["tokenizer_documents"] == 3
        assert report["tokenizer_strings"] == 300
    assert "exists already" in refused(capsys, "export", str(finished), "--out", str(out))


def test_export_refuses_a_folder_that_computes_something_else(finished, tmp_path, monkeypatch):
    """The check is real: a wrong merge leaves no folder of that name."""
    from model.errors import RunFailed
    from model.linear.sparse_low_rank import SparseLowRank
    from pretrain.using.export import export

    merge = SparseLowRank.dense_weight
    monkeypatch.setattr(SparseLowRank, "dense_weight", lambda self: merge(self) * 1.01)
    with pytest.raises(RunFailed, match="logits that differ"):
        export(str(finished), str(tmp_path / "hf"), dtype="fp32", overwrite=False)
    assert not (tmp_path / "hf").exists()


def test_doctor_finds_this_machine_fit(capsys):
    status, output = run_command("doctor", "--json")
    assert status == 0, output
    findings = {finding["what"]: finding for finding in json.loads(output)}
    assert findings["deepspeed engine"]["status"] == "ok"


def test_plan_json(capsys):
    assert main(["plan", "configs/llama_60m_sltrain.toml", "--json", "--world-size", "2"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"] == {"total": 43529832, "trainable": 43529832, "dense_equivalent": 58073600}
    assert figures["tokens"] == 11000 * 512 * 256
    assert figures["micro_steps_per_update"] == 1
    assert "processes" in refused(capsys, "plan", "configs/llama_60m_sltrain.toml", "--world-size", "3")
