"""Hugging Face folders as the start of a run: what comes in, what it goes on as, and what is refused."""

import json
import re
import shutil
import tomllib
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import logged, train_here, write_tiny

from model.errors import UserError
from model.hf import load_folder
from pretrain.checkpoint.read import Checkpoint, load_model, open_checkpoint, tokenizer_of
from pretrain.cli import main
from pretrain.data.tokenizer import open_tokenizer
from pretrain.loop.origin import Start
from pretrain.machine import fault

FACTORS = ["--rank", "4", "--alpha", "2"]
DENSE = ["--linear.name=dense", "--train.global_batch_size=2"]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A dense run of two steps, its configuration, and its export `hf`."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_here(write_tiny(folder, corpus), *DENSE, "--train.max_steps=2") == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "hf"), "--no-check"]) == 0
    return folder


@pytest.fixture
def hf(trained, tmp_path):
    return shutil.copytree(trained / "hf", tmp_path / "hf")


def edit(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


def edit_weights(folder, **changes):
    """Put tensors in the place of others, or in none where there is None."""
    tensors = load_file(folder / "model.safetensors") | {name.replace("__", "."): t for name, t in changes.items()}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def imported(folder, out, *options):
    assert main(["import", str(folder), "--out", str(out), *options]) == 0
    return open_checkpoint(out)


def refused(capsys, folder, out, *options):
    """The sentence with which an import is refused, which leaves nothing."""
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert main(["import", str(folder), "--out", str(out), *options]) == 2
    assert sorted(out.parent.iterdir()) == before
    return capsys.readouterr().err


def test_training_goes_on_from_an_import_as_from_the_run_itself(trained, corpus, tmp_path, capsys):
    checkpoint = imported(trained / "hf", tmp_path / "in")
    original = open_checkpoint(trained / "run")
    assert checkpoint.tokenizer_files == original.tokenizer_files
    assert checkpoint.stage.config.model == original.stage.config.model
    names = [name for name in original.names() if name.startswith("model.")]
    assert sorted(checkpoint.names()) == sorted(names)
    assert all(torch.equal(checkpoint.read(name), original.read(name)) for name in names)
    for name, source in (("from_run", trained / "run"), ("from_import", tmp_path / "in")):
        options = ["--train.max_steps=2", "--schedule.total_steps=4", f"--run.dir={tmp_path / name}"]
        assert train_here(trained / "tiny.toml", *DENSE, *options, start=Start(str(source))) == 0
    assert logged(tmp_path / "from_run") == logged(tmp_path / "from_import")


def test_the_file_that_an_import_writes_is_what_train_takes(hf, corpus, tmp_path, capsys):
    out = tmp_path / "in"
    imported(hf, out, "--linear", "sparse_low_rank", "--rank", "4", "--density", "0.1")
    said = capsys.readouterr().out
    written = tomllib.loads((out / "train.toml").read_text())
    assert written["model"]["dim"] == 32
    assert written["linear"] == {
        "name": "sparse_low_rank", "rank": 4, "alpha": 32.0, "density": 0.1, "support": "element"
    }  # fmt: skip
    assert f"sparlow train {out}/train.toml --from {out}" in said
    assert (out / "train.toml").read_text().split("[optimizer]")[0].partition("[model]")[2].strip() in said
    run = ["--train.max_steps=1", "--train.micro_batch_size=1", "--train.global_batch_size=1", "--eval.tokens=64"]
    overrides = [*run, "--train.dtype=fp32", f"--data.path={corpus}", f"--run.dir={tmp_path / 'run'}"]
    assert train_here(out / "train.toml", *overrides, start=Start(str(out))) == 0
    with pytest.raises(UserError, match=r"holds an imported model, .*: train with --from .* --run\.dir=NEW"):
        train_here(out / "train.toml", *run, f"--data.path={corpus}", f"--run.dir={out}")
    new = [*overrides, f"--run.dir={tmp_path / 'other'}"]
    with pytest.raises(UserError, match="holds no optimizer state, as its model was imported; use --from-state"):
        train_here(out / "train.toml", *new, start=Start(str(out), "all"))
    for command in (["eval", str(out), "--data", str(corpus), "--tokens", "64"], ["sample", str(out), "--tokens", "2"]):
        assert main(command) == 0


def test_a_tokenizer_json_comes_along_or_none_does(hf, tmp_path, capsys):
    (hf / "tokenizer.model").unlink()
    checkpoint = imported(hf, tmp_path / "json")
    tokenizer = tokenizer_of(checkpoint)
    assert tokenizer is not None
    assert tokenizer.identity == open_tokenizer(hf / "tokenizer.json").identity
    assert "/checkpoints/step-00000000/tokenizer.json --out data/mine" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hf / name).unlink()
    assert tokenizer_of(imported(hf, tmp_path / "none")) is None
    said = capsys.readouterr().out
    assert "has no tokenizer.model and no tokenizer.json: the checkpoint has no tokenizer" in said
    assert "sparlow prepare" not in said


def test_bf16_stays_as_it_is_and_fp16_becomes_fp32(hf, tmp_path):
    tensors = load_file(hf / "model.safetensors")
    for dtype, kept in (
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
    ):
        edit_weights(hf, **{name.replace(".", "__"): tensor.to(dtype) for name, tensor in tensors.items()})
        checkpoint = imported(hf, tmp_path / "in", "--overwrite")
        weight = checkpoint.read("model.layers.1.feed_forward.up_proj.weight")
        assert weight.dtype == kept
        assert torch.equal(weight, tensors["model.layers.1.mlp.up_proj.weight"].to(dtype).to(kept))
        assert checkpoint.config.train.dtype == ("bf16" if dtype == torch.bfloat16 else "fp32")


def test_the_files_decide_whether_the_head_is_the_embedding(hf, tmp_path, capsys):
    head = load_file(hf / "model.safetensors")["lm_head.weight"]
    edit(hf, tie_word_embeddings=True)
    checkpoint = imported(hf, tmp_path / "other")
    assert not checkpoint.config.model.tie_embeddings
    assert torch.equal(checkpoint.read("model.lm_head.weight"), head)
    said = capsys.readouterr().out
    assert "note: config.json says that head and embedding are one (tie_word_embeddings), but" in said
    edit_weights(hf, model__embed_tokens__weight=head.clone())
    assert imported(hf, tmp_path / "same").config.model.tie_embeddings
    edit_weights(hf, lm_head__weight=None)
    assert imported(hf, tmp_path / "tied").config.model.tie_embeddings
    assert "note" not in capsys.readouterr().out
    edit(hf, tie_word_embeddings=False)
    assert "lm_head.weight is missing (or config.json lacks tie" in refused(capsys, hf, tmp_path / "in")
    edit(hf, tie_word_embeddings=True)
    edit_weights(hf, lm_head__weight=head, model__embed_tokens__weight=None)
    assert "of the two the files have lm_head.weight alone" in refused(capsys, hf, tmp_path / "in")


def test_other_architectures_come_in_where_they_compute_the_same(hf, tmp_path, capsys):
    edit(hf, model_type="mistral", sliding_window=None, architectures=["MistralForCausalLM"])
    imported(hf, tmp_path / "mistral")
    edit(hf, model_type="mistral", sliding_window=32)
    imported(hf, tmp_path / "wide")
    edit(hf, model_type="qwen2", sliding_window=None, use_sliding_window=False)
    bias = torch.zeros(32)
    edit_weights(hf, model__layers__0__self_attn__q_proj__bias=bias)
    imported(hf, tmp_path / "qwen2")
    edit_weights(hf, model__layers__0__self_attn__q_proj__bias=bias + 1)
    assert "q_proj.bias is a bias, which the projections here do not have" in refused(capsys, hf, tmp_path / "in")


def broken(hf, what):
    """Break the folder in one of the ways that users meet; returns what the sentence has."""
    weights = hf / "model.safetensors"
    if what == "NaN":
        tensor = load_file(weights)["model.layers.1.mlp.up_proj.weight"]
        tensor[3, 4] = float("nan")
        edit_weights(hf, model__layers__1__mlp__up_proj__weight=tensor)
        return "tensor model.layers.1.mlp.up_proj.weight holds NaN or infinity"
    if what == "infinity":
        edit_weights(hf, model__norm__weight=torch.full((32,), float("-inf"), dtype=torch.bfloat16))
        return "tensor model.norm.weight holds NaN or infinity"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
        return "model.safetensors: not a readable safetensors file"
    if what == "shard gone":
        names = dict.fromkeys(load_file(weights), "model-00001-of-00002.safetensors")
        (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        return "model-00001-of-00002.safetensors: not a readable safetensors file (no such file); download"
    if what == "twice":
        shutil.copy(weights, hf / "other.safetensors")
        names = {"a": "model.safetensors", "b": "other.safetensors"}
        (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        return "is in model.safetensors too; download the folder again"
    if what == "pickle":
        weights.rename(hf / "pytorch_model.bin")
        return "only .bin weights, which are pickles and never loaded"
    if what == "other architecture":
        edit(hf, model_type="gpt2")
        return "model_type is 'gpt2'; only folders of type llama, mistral, qwen2 can be loaded"
    if what == "contradiction":
        edit(hf, intermediate_size=64)
        return "is (53, 32), but config.json asks for (64, 32); correct config.json or download the folder again"
    if what == "tokenizer":
        edit(hf, vocab_size=256)
        tensors = load_file(weights)
        edit_weights(hf, **{n.replace(".", "__"): t[:256] for n, t in tensors.items() if t.shape == (320, 32)})
        return "a tokenizer of 320 ids, but config.json has vocab_size 256; give the model's own with --tokenizer FILE"
    shutil.rmtree(hf)
    return "no such folder; give a Hugging Face folder"


@pytest.mark.parametrize(
    "what",
    [
        *("NaN", "infinity", "truncated", "shard gone", "pickle", "other architecture", "contradiction", "tokenizer"),
        *("twice", "no folder"),
    ],
)
def test_a_folder_that_cannot_be_taken_is_refused(hf, tmp_path, capsys, what):
    sentence = broken(hf, what)
    said = refused(capsys, hf, tmp_path / "in")
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_a_full_disk_is_said_and_leaves_nothing(hf, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPARLOW_FAULT", "disk_full")
    monkeypatch.setattr(fault, "_visits", Counter())  # other tests count theirs
    said = refused(capsys, hf, tmp_path / "in")
    assert "in: cannot be written (No space left on device); choose another folder or make room" in said


def test_wrong_arguments_are_refused(hf, tmp_path, capsys):
    out = tmp_path / "in"
    said = refused(capsys, "meta-llama/Llama-3.2-1B", out)
    assert "nothing is downloaded here: fetch it with `hf download meta-llama/Llama-3.2-1B --local-dir" in said
    for options, sentence in (
        (["--rank", "4"], "--rank has no effect with --linear dense"),
        (["--support", "magnitude"], "--support has no effect with --linear dense"),
        (["--linear", "low_rank", "--init", "spectral"], "--init has no effect with --linear low_rank"),
        (
            ["--linear", "lora", "--init", "svd"],
            "linear.init: expected 'kaiming', 'spectral', 'orthogonal' or 'ggd:NU'",
        ),
        (
            ["--linear", "sst"],
            "--linear sst: such linears are not made of weights that are there; choose one of dense, ",
        ),
        (["--linear", "sparse", "--support", "block"], "--support block does not go with --linear sparse"),
        (["--linear", "sparse", "--reduction", "0.5"], "which --linear sparse contradicts"),
        (["--linear", "low_rank", "--density", "0.1"], "--density has no effect with --linear low_rank"),
        (["--linear", "low_rank", "--rank", "33"], "linear.rank 33 exceeds the smaller side"),
        (["--linear", "low_rank", "--rank", "0"], "linear.rank: expected a number of at least 1"),
        (["--seed", "-1"], "run.seed"),
        (["--reduction", "0.5"], "--reduction gives each matrix a rank of its own, which --linear dense contradicts"),
        (["--linear", "low_rank", "--rank", "2", "--reduction", "0.5"], "which --rank contradicts"),
        (["--linear", "low_rank", "--reduction", "1"], "must be at least 0 and less than 1"),
        (["--tokenizer", str(tmp_path / "gone.model")], "gone.model: the tokenizer cannot be read"),
    ):
        assert sentence in refused(capsys, hf, out, *options)


def test_a_folder_is_replaced_only_where_it_is_an_import(trained, hf, corpus, tmp_path, capsys):
    out = tmp_path / "in"
    imported(hf, out)
    before = (out / "checkpoints/step-00000000/manifest.json").read_bytes()
    assert "exists already; choose another folder" in refused(capsys, hf, out)
    edit_weights(hf, model__norm__weight=torch.ones(32))
    imported(hf, out, "--overwrite")
    assert (out / "checkpoints/step-00000000/manifest.json").read_bytes() != before
    (out / "checkpoints/step-00000003").mkdir()
    assert "holds the checkpoint step-00000003 of a run" in refused(capsys, hf, out, "--overwrite")
    assert "is not an imported model" in refused(capsys, hf, trained / "hf", "--overwrite")


@pytest.mark.parametrize("kind", ["low_rank", "sparse_low_rank"])
def test_ranks_by_welores_rule_reach_the_checkpoint_and_the_users_file(hf, corpus, tmp_path, capsys, kind):
    out = tmp_path / "in"
    capsys.readouterr()
    checkpoint = imported(hf, out, "--linear", kind, "--reduction", "0.6", "--json")
    told = json.loads(capsys.readouterr().out)["matrices"]
    ranks = dict(checkpoint.config.linear.ranks)
    assert {name: found["rank"] for name, found in told.items()} == ranks
    assert tomllib.loads((out / "train.toml").read_text())["linear"]["ranks"] == ranks
    spectra = {name: torch.linalg.svdvals(load_file(hf / "model.safetensors")[theirs(name)]) for name in ranks}
    left_out = 1 - sum(ranks.values()) / sum(map(len, spectra.values()))
    assert 0.6 <= left_out < 0.75
    assert len(set(ranks.values())) > 3, "of equal ranks nobody needs a table"
    model = load_model(checkpoint, torch.device("cpu"))
    assert all(model.get_submodule(name).A.shape[0] == rank for name, rank in ranks.items())
    options = ["--train.max_steps=1", "--train.dtype=fp32", f"--data.path={corpus}", f"--run.dir={tmp_path / 'run'}"]
    small = ["--train.micro_batch_size=1", "--train.global_batch_size=1", "--eval.tokens=64"]
    assert train_here(out / "train.toml", *options, *small, start=Start(str(out))) == 0


@pytest.mark.parametrize("kind", ["lora", "lora_fa", "relora"])
def test_a_frozen_matrix_is_what_was_imported(hf, tmp_path, capsys, kind):
    capsys.readouterr()
    checkpoint = imported(hf, tmp_path / "in", "--linear", kind, "--rank", "4", "--json")
    told, model = json.loads(capsys.readouterr().out)["matrices"], load_model(checkpoint, torch.device("cpu"))
    assert {found["error"] for found in told.values()} == {0.0}
    weights = load_file(hf / "model.safetensors")
    for name in told:
        assert torch.equal(model.get_submodule(name).dense_weight(), weights[theirs(name)].float()), name
    spectral = imported(hf, tmp_path / "pissa", "--linear", kind, "--rank", "4", "--init", "spectral")
    model = load_model(spectral, torch.device("cpu"))
    for name in told:
        linear, weight = model.get_submodule(name), weights[theirs(name)].float()
        torch.testing.assert_close(linear.dense_weight(), weight, rtol=0, atol=1e-6)
        largest = torch.linalg.svdvals(weight.double())[:4]
        product = torch.linalg.svdvals(linear.scale * linear.B.detach().double() @ linear.A.detach().double())[:4]
        torch.testing.assert_close(product, largest, rtol=1e-4, atol=1e-6)
    assert tomllib.loads((tmp_path / "pissa" / "train.toml").read_text())["linear"]["init"] == "spectral"
    assert "init" not in tomllib.loads((tmp_path / "in" / "train.toml").read_text())["linear"]
    assert "--linear lora keeps them all" in refused(
        capsys, hf, tmp_path / "b", "--linear", "lora", "--reduction", "0.5"
    )


def test_more_is_left_out_than_was_asked_for_where_factors_would_be_larger_than_the_matrix(hf, tmp_path, capsys):
    imported(hf, tmp_path / "in", "--linear", "low_rank", "--reduction", "0.05")
    assert re.search(r"--reduction 0\.05: [3-5]\d% of all singular values are left out", "".join(capsys.readouterr()))


def theirs(name):
    """A projection's name in the folder."""
    return f"model.{name}.weight".replace("attention", "self_attn").replace("feed_forward", "mlp")


@pytest.mark.parametrize(
    "linear",
    [
        ["low_rank", *FACTORS],
        ["sparse_low_rank", "--support", "magnitude", *FACTORS],
        ["sparse", "--density", "0.2"],
    ],
)
def test_the_errors_that_are_told_are_those_of_the_checkpoint(hf, tmp_path, capsys, linear):
    capsys.readouterr()
    checkpoint = imported(hf, tmp_path / "in", "--linear", *linear, "--json")
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "in" / "import.json").read_text())
    model, dense = load_model(Checkpoint(checkpoint.folder), torch.device("cpu")), dict(load_folder(hf)[1])
    assert len(told["matrices"]) == 14
    for name, found in told["matrices"].items():
        weight = dense[f"{name}.weight"]
        error = (model.get_submodule(name).dense_weight() - weight).norm() / weight.norm()
        assert found["error"] == pytest.approx(error.item(), rel=1e-4)
        assert 0 < found["error"] <= found["low_rank_error"] <= 1
        assert (found["error"] < found["low_rank_error"]) == (found["entries"] > 0)
