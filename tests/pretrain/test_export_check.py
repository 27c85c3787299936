"""Export of a deep model with large weights: a right folder is accepted in both precisions, a wrong one never."""

import importlib.util
import json
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import train_here, write_tiny

from model.errors import RunFailed
from model.linear.sparse_low_rank import SparseLowRank
from pretrain.checkpoint.read import Checkpoint
from pretrain.cli import main
from pretrain.using import export as exporting

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed: pip install -e .[dev]"
)
DTYPES = ("fp32", "bf16")
LAYER = "model.layers.8."


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    changes = ["--model.n_layers=16", "--linear.alpha=16", "--train.max_steps=1"]
    assert train_here(write_tiny(folder, corpus), *changes) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Weights as large as a long training at a high learning rate makes them, so that rounding costs much."""
    read = Checkpoint.read

    def read_large(self, name):
        tensor = read(self, name)
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        return 1 + 0.3 * noise if "norm" in name else 0.4 * noise

    monkeypatch.setattr(Checkpoint, "read", read_large)


@pytest.fixture
def without_transformers(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))


def export(run, out, dtype="fp32", **options):
    return exporting.export(str(run), str(out), dtype=dtype, overwrite=False, **options)


def spoil(monkeypatch, change):
    """Let export write a folder whose weights and config.json `change` has altered."""
    write = exporting.write_folder

    def write_wrong(config, weight_of, tokenizer, folder, dtype, **options):
        write(config, weight_of, tokenizer, folder, dtype, **options)
        weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        change(weights, config)
        weights = {name: weight.contiguous().clone() for name, weight in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(exporting, "write_folder", write_wrong)


def permuted_head(weights, config):
    weights["lm_head.weight"] = weights["lm_head.weight"].roll(1, 0)


def two_rows_of_the_head(weights, config):
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = head[[1, 0, *range(2, len(head))]]


def head_for_embedding(weights, config):
    names = "lm_head.weight", "model.embed_tokens.weight"
    head, embedding = (weights[name] for name in names)
    weights |= dict(zip(names, (embedding, head), strict=True))


def transposed(weights, config):
    weights[LAYER + "self_attn.o_proj.weight"] = weights[LAYER + "self_attn.o_proj.weight"].T


def no_scale_of_a_norm(weights, config):
    weights[LAYER + "input_layernorm.weight"] = torch.ones_like(weights[LAYER + "input_layernorm.weight"])


def other_theta(weights, config):
    config["rope_theta"] = 5000.0


def interleaved_rope(weights, config):
    for name in (LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.k_proj.weight"):
        weights[name] = weights[name].unflatten(0, (2, 2, 8)).transpose(1, 2).flatten(0, 2)


FAULTS = [
    permuted_head, two_rows_of_the_head, head_for_embedding, transposed, no_scale_of_a_norm, other_theta,
    interleaved_rope,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_folder_of_a_deep_model_is_accepted(run, tmp_path, without_transformers, dtype):
    report = export(run, tmp_path / "hf", dtype)
    assert report["read_back_error"] < 16 * report["rounding_error"]
    assert report["parameters"] == sum(w.numel() for w in load_file(tmp_path / "hf" / "model.safetensors").values())
    assert report["parameters"] > report["trained_parameters"]
    assert report["folder_loss"] == pytest.approx(report["model_loss"], rel=0.01)
    if dtype == "bf16":
        assert report["max_logit_difference"] > 0.25  # more than any bound that holds for all models could allow
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "equal those of the weights within fp32 rounding" in card
    assert ("rounding the weights moved the checkpoint's by" in card) == (dtype == "bf16")
    assert "not checked with transformers" in card


@needs_transformers
def test_what_transformers_computes_is_judged_alike(run, tmp_path):
    report = export(run, tmp_path / "hf")
    assert report["max_logit_difference_transformers"] > 1e-4
    assert report["transformers_error"] < 16 * report["rounding_error"]


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("tied", ["false", "true"])
def test_transformers_computes_the_same_in_parts(corpus, tmp_path, monkeypatch, tied):
    """A model that may not fit into memory is never in it as a whole, there either."""
    assert train_here(write_tiny(tmp_path, corpus), f"--model.tie_embeddings={tied}", "--train.max_steps=1") == 0
    reports = []
    for free in (2**40, 0):
        monkeypatch.setattr(exporting, "free_bytes", lambda device, free=free: free)
        reports.append(export(tmp_path / "run", tmp_path / f"hf-{free}"))
    assert reports[0]["transformers_error"] == reports[1]["transformers_error"]


@pytest.mark.slow
@needs_transformers
def test_transformers_in_parts_refuses_a_folder_without_a_weight(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "free_bytes", lambda device: 0)
    spoil(monkeypatch, lambda weights, config: weights.pop("model.norm.weight"))
    export(run, tmp_path / "hf", check=False)
    with pytest.raises(RunFailed, match=r"transformers cannot load the exported folder: .*model\.norm\.weight"):
        exporting._ask_transformers(tmp_path / "hf", torch.tensor([[1, 2]]), [], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_folder_is_refused_and_kept(run, tmp_path, monkeypatch, without_transformers, dtype, fault):
    spoil(monkeypatch, fault)
    with pytest.raises(RunFailed, match=r"differ.*row \d, position \d+, token id \d+: .* instead of .*; export again"):
        export(run, tmp_path / "hf", dtype)
    assert not (tmp_path / "hf").exists()
    kept = tmp_path / "hf.failed-check"
    assert (kept / "model.safetensors").is_file()
    reason = (kept / "FAILED_CHECK.txt").read_text()
    assert "token id" in reason
    assert "--no-check" in reason


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_without_its_scale_is_refused(run, tmp_path, monkeypatch, without_transformers, dtype):
    def unscaled(self):
        return self.support.add_to(self.B.float() @ self.A.float(), self.values)

    monkeypatch.setattr(SparseLowRank, "dense_weight", unscaled)
    with pytest.raises(RunFailed, match="the training model gives logits that differ"):
        export(run, tmp_path / "hf", dtype)


def test_a_second_failure_keeps_the_first(run, tmp_path, monkeypatch, without_transformers):
    spoil(monkeypatch, transposed)
    for _ in range(3):
        with pytest.raises(RunFailed, match="kept as"):
            export(run, tmp_path / "hf")
    names = ["hf.failed-check", "hf.failed-check-2", "hf.failed-check-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_costly_weights_are_refused(run, tmp_path, monkeypatch, without_transformers):
    """Judged by loss alone, as where rounding to bf16 is what made the weights worse."""
    monkeypatch.setattr(exporting, "_require", lambda *args: 0.0)
    spoil(monkeypatch, lambda weights, config: weights["lm_head.weight"].mul_(10))
    with pytest.raises(RunFailed, match=r"held-out loss of .* export with --dtype fp32"):
        export(run, tmp_path / "hf", "bf16")


def test_no_check_writes_the_folder_and_its_card_says_so(run, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, permuted_head)
    assert main(["export", str(run), "--out", str(tmp_path / "hf"), "--no-check"]) == 0
    said = capsys.readouterr().out
    assert "168,480 parameters" in said
    assert "not checked (--no-check)" in said
    assert "none: exported with --no-check" in (tmp_path / "hf" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.fault("F39")
def test_the_old_folder_outlives_a_failed_check(run, tmp_path, monkeypatch, without_transformers):
    out = tmp_path / "hf"
    exporting.export(str(run), str(out), dtype="fp32", overwrite=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    spoil(monkeypatch, transposed)
    with pytest.raises(RunFailed, match="kept as"):
        exporting.export(str(run), str(out), dtype="bf16", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "hf.failed-check"]
    monkeypatch.undo()
    exporting.export(str(run), str(out), dtype="bf16", overwrite=True)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert "\n---\n\n# hf\n" in (out / "README.md").read_text()


def test_a_run_on_a_mixture_is_exported_and_compared_by_loss(corpus, tmp_path, without_transformers):
    (tmp_path / "other.txt").write_text("abc def ghij klm nop\n" * 400)
    made = ["--tokenizer", str(corpus / "tokenizer.model"), "--val-fraction", "0.2", "--out", str(tmp_path / "other")]
    assert main(["prepare", "--text", str(tmp_path / "other.txt"), *made]) == 0
    folders = {"a": corpus, "b": tmp_path / "other"}
    sources = [f'{name} = {{ path = "{path}", weight = 3.0 }}' for name, path in folders.items()]
    text = write_tiny(tmp_path, corpus).read_text()
    (tmp_path / "tiny.toml").write_text(text.replace(f'path = "{corpus}"', f"mixture = {{ {', '.join(sources)} }}"))
    assert train_here(tmp_path / "tiny.toml", "--train.max_steps=1") == 0
    report = export(tmp_path / "run", tmp_path / "hf")
    assert report["folder_loss"] == pytest.approx(report["model_loss"], rel=0.01)
    assert "| corpus | data (weight 3), other (weight 3) |" in (tmp_path / "hf" / "README.md").read_text()
