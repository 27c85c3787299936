"""Checkpoints and folders from strangers, whose hashes agree: refused in a sentence, before any of it is believed."""

import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from growth_runs import checkpoint, names
from safetensors.torch import load_file, save
from support import edit_checkpoint, train_here, write_tiny

from model.errors import UserError
from model.hf import load_folder
from pretrain.checkpoint.manifest import BrokenCheckpoint, read_manifest, seal
from pretrain.checkpoint.read import Checkpoint, load_model, open_checkpoint, tokenizer_of
from pretrain.cli import main
from pretrain.loop.state import TrainState
from pretrain.loop.state_fields import FIELDS

OPTIONS = ["--train.max_steps=2", "--schedule.total_steps=6", "--train.global_batch_size=2"]
TENSORS = "tensors-00000.safetensors"
WEIGHT = "model.layers.0.attention.q_proj.A"


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A folder with tiny.toml, its run of two steps and what `export` makes of it."""
    folder = tmp_path_factory.mktemp("strangers")
    assert train_here(write_tiny(folder, corpus), *OPTIONS) == 0
    assert main(["export", str(folder / "run"), "--out", str(folder / "hf"), "--no-check"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained / "run", tmp_path / "run")


@pytest.fixture
def folder(run):
    return checkpoint(run, 2)


def refused(run: Path, config: Path, capsys, sentence: str) -> None:
    """Every command that reads a checkpoint says so and does nothing."""
    new = f"--run.dir={run.parent / 'new'}"
    for command in (
        ["eval", str(run)],
        ["sample", str(run), "--tokens", "1"],
        ["export", str(run), "--out", str(run.parent / "out"), "--no-check"],
        ["grow", str(run), str(config), new, "--model.n_layers=4"],
        ["train", str(config), *OPTIONS, new, "--from", str(run)],
        ["train", str(config), *OPTIONS, f"--run.dir={run}", "--train.max_steps=3"],
    ):
        assert main(command) == 2, command
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence in said, (command, said)
    assert not (run.parent / "out").exists()
    assert names(run) == ["step-00000002"]


# By what is changed of the tensors, and what is said of it.
WRONG_TENSORS = {
    "broadcast": (lambda tensors: tensors | {WEIGHT: torch.ones(1, 1)}, f"tensor {WEIGHT} is F32 (1, 1), expected"),
    "cast": (lambda tensors: tensors | {WEIGHT: tensors[WEIGHT].long()}, f"tensor {WEIGHT} is I64"),
    "transposed": (lambda tensors: tensors | {WEIGHT: tensors[WEIGHT].t().contiguous()}, f"tensor {WEIGHT} is F32"),
    "extra": (lambda tensors: tensors | {"model.evil": torch.ones(1)}, "tensor model.evil is not known"),
    "missing": (lambda tensors: {k: v for k, v in tensors.items() if k != WEIGHT}, f"tensor {WEIGHT} is missing"),
    "other": (lambda tensors: tensors | {"evil": torch.ones(1)}, "tensor evil is not known"),
    "moment": (
        lambda tensors: tensors | {f"optimizer.{WEIGHT.removeprefix('model.')}.exp_avg": torch.ones(1)},
        "exp_avg is F32 (1,), expected",
    ),
    "moments": (lambda tensors: tensors | {"optimizer.evil": torch.ones(1)}, "tensor optimizer.evil is not known"),
}


@pytest.mark.fault("F45")
@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_tensors_of_another_shape_type_or_name(folder, what):
    change, sentence = WRONG_TENSORS[what]
    edit_checkpoint(folder, files={TENSORS: save(change(load_file(folder / TENSORS)))})
    with pytest.raises(UserError) as refusal:
        open_checkpoint(folder)
    assert sentence in str(refusal.value)


@pytest.mark.fault("F45")
def test_every_command_says_so(trained, run, folder, capsys):
    change, sentence = WRONG_TENSORS["broadcast"]
    edit_checkpoint(folder, files={TENSORS: save(change(load_file(folder / TENSORS)))})
    capsys.readouterr()
    refused(run, trained / "tiny.toml", capsys, sentence)


@pytest.mark.fault("F45")
@pytest.mark.parametrize("size", [0, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_absurd_size(folder, size):
    whole = (folder / TENSORS).read_bytes()
    edit_checkpoint(folder, files={TENSORS: struct.pack("<Q", size) + whole[8:]})
    with pytest.raises(UserError, match=f"{TENSORS}: not a safetensors file"):
        open_checkpoint(folder)


@pytest.mark.fault("F45")
def test_a_tensor_in_two_files(folder):
    """Which of them is meant would depend on the order of the files."""
    again = save({WEIGHT: torch.zeros(1)})
    (folder / "tensors-00001.safetensors").write_bytes(again)
    edit_checkpoint(folder, files={"tensors-00001.safetensors": again})
    with pytest.raises(UserError, match="is in another file too"):
        open_checkpoint(folder)


WRONG_SIZES = {
    "dim": ("dim = 32", "dim = 16777216", "step-00000002: .*too many for a support"),
    "vocab_size": ("vocab_size = 320", "vocab_size = 16777216", r"expected F32 or BF16 \(16777216, 32\)"),
    "n_layers": ("n_layers = 2", "n_layers = 16777216", "a model of 16777216 layers"),
    "deep": ("n_layers = 2", "n_layers = " + "[" * 100_000, "nested too deeply|not valid TOML|cannot be read"),
    "digits": ("n_layers = 2", "n_layers = " + "9" * 5000, "a number of thousands of digits"),
    "binary": ("n_layers = 2", "n_layers = \udcff", "cannot be read as text"),
    "large": ("n_layers = 2", "n_layers = 2 #" + "x" * 2**20, "more than the 1,048,576"),
}


@pytest.mark.fault("F45")
@pytest.mark.parametrize("what", WRONG_SIZES)
def test_a_configuration_of_another_model(folder, monkeypatch, what):
    """Found by the shapes alone: nothing is allocated for it."""
    from pretrain.loop import build

    monkeypatch.setattr(build, "build_model", lambda *_, **__: pytest.fail("memory was touched"))
    before, after, sentence = WRONG_SIZES[what]
    text = (folder / "config.toml").read_text()
    assert before in text
    edit_checkpoint(folder, files={"config.toml": text.replace(before, after).encode("utf-8", "surrogateescape")})
    with pytest.raises(UserError, match=sentence):
        load_model(open_checkpoint(folder), torch.device("cpu"))


def test_every_number_of_a_state_is_checked():
    assert list(FIELDS) == list(TrainState.__dataclass_fields__)


WRONG_STATES = [
    *(("step", wrong) for wrong in (-1, 1.0, True, None, "2", 2**62, [2], 3)),
    *(("stage", wrong) for wrong in (-1, 1, 2**40)),
    *(("cursor", wrong) for wrong in (-8, 2**63, 10**400, 0.5)),
    *(("flops", wrong) for wrong in (-1.0, 1e300, "1", None, True)),
    *(("evaluation_due", wrong) for wrong in (0, 1, None, "false")),
    ("stage_start", 5),
    ("consecutive_skips", 3),
    *(("grown", wrong) for wrong in ({}, [{}], [[]], None, [{"n_layers": 0}])),
    *(("origin", wrong) for wrong in ([], {"run": "x"}, {"checkpoint": "../../evil"})),
    *(("kernels", wrong) for wrong in ([], {"device": "cpu", "shapes": {"evil": {}}}, {"shapes": {}})),
    ("kernels", {"device": "cpu", "shapes": {"32x32 rank 8": {"path": "evil"}}}),
]


@pytest.mark.fault("F45")
@pytest.mark.parametrize(("field", "wrong"), WRONG_STATES)
def test_a_state_that_no_run_writes(folder, field, wrong):
    fields = json.loads((folder / "state.json").read_text()) | {field: wrong}
    edit_checkpoint(folder, files={"state.json": json.dumps(fields).encode()})
    with pytest.raises(UserError, match=f"state.json.*{field}|stage .* of a run of 1|state.json is of step"):
        open_checkpoint(folder)


@pytest.mark.fault("F45")
@pytest.mark.parametrize("data", [b"[]", b"\xff", b"{", b"[" * 10**5, b'{"a":' * 10**5, b'{"step": NaN}', b""])
def test_a_state_that_is_none(folder, data):
    edit_checkpoint(folder, files={"state.json": data})
    with pytest.raises(UserError, match=r"state\.json: "):
        open_checkpoint(folder)


@pytest.mark.fault("F45")
def test_a_step_under_the_name_of_another(folder):
    other = folder.rename(folder.with_name("step-00000009"))
    with pytest.raises(UserError, match="holds step 2, which is not that of its name"):
        open_checkpoint(other)


@pytest.mark.fault("F45")
@pytest.mark.fault("F9")
@pytest.mark.parametrize("data", [b"", b"\x0a\xff\xff\xff\xff\xff", pickle.dumps({"a": 1}), bytes(1000)])
def test_a_tokenizer_that_is_none(folder, data):
    edit_checkpoint(folder, files={"tokenizer.model": data})
    with pytest.raises(UserError, match="not a SentencePiece model"):
        tokenizer_of(open_checkpoint(folder))


@pytest.mark.fault("F45")
def test_a_tokenizer_is_hashed_before_it_is_loaded(folder, monkeypatch):
    import sentencepiece

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", lambda: pytest.fail("it was loaded"))
    path = folder / "tokenizer.model"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer\.model is damaged"):
        Checkpoint(folder)


@pytest.mark.fault("F8")
@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "x" * 300, "a\0b", "..", "", "manifest.json", "a/b"])
def test_names_that_lead_elsewhere(folder, name):
    entry = {"name": name, "bytes": 1, "sha256": "0" * 64}
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_bytes(seal(fields | {"files": [*fields["files"], entry]}))
    with pytest.raises(BrokenCheckpoint, match="not a plain file of the folder"):
        read_manifest(folder)


@pytest.mark.fault("F8")
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_file_that_is_none(folder, tmp_path, name, kind):
    """A pipe would be waited for without end, a link leads outside."""
    path = folder / name
    whole = path.rename(tmp_path / "whole")
    if kind == "link":
        path.symlink_to(whole)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(BrokenCheckpoint, match=name):
        read_manifest(folder)


@pytest.mark.fault("F8")
def test_a_manifest_that_leaves_a_file_out(folder):
    """What it does not list is not verified, so it is not read."""
    fields = json.loads((folder / "manifest.json").read_text())
    files = [entry for entry in fields["files"] if entry["name"] != "state.json"]
    (folder / "manifest.json").write_bytes(seal(fields | {"files": files}))
    with pytest.raises(UserError, match=r"manifest\.json does not list state\.json"):
        open_checkpoint(folder)


WRONG_CONFIGS = [
    *({"hidden_size": wrong} for wrong in (0, -8, "8", None, 2**40, [8], True)),
    *({"num_attention_heads": wrong} for wrong in (0, "2", 10**400)),
    {"num_hidden_layers": 2**24},
    {"head_dim": "x"},
    {"rope_theta": "x"},
    {"rms_norm_eps": 10**400},
    {"rope_scaling": [1]},
    {"rope_parameters": "x"},
    {"vocab_size": 2**24},
    {"max_position_embeddings": {}},
    {"tie_word_embeddings": "no"},
]


@pytest.mark.fault("F45")
@pytest.mark.parametrize("wrong", WRONG_CONFIGS, ids=lambda wrong: f"{wrong}"[:40])
def test_a_hugging_face_config_from_anyone(trained, tmp_path, wrong):
    folder = shutil.copytree(trained / "hf", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | wrong
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="/hf"):
        load_folder(folder)


@pytest.mark.fault("F45")
def test_hugging_face_weights_from_anyone(trained, tmp_path):
    folder = shutil.copytree(trained / "hf", tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    name = "model.norm.weight"
    (folder / "model.safetensors").write_bytes(save(tensors | {name: tensors[name].long()}))
    with pytest.raises(UserError, match="is of type I64; only F32"):
        load_folder(folder)
    for content in ("[" * 10**5, "[]", '{"weight_map": []}', '{"weight_map": {"a": "../x.safetensors"}}', "NaN"):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(UserError, match="not an index of weight files"):
            load_folder(folder)
    (folder / "config.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match="nested too deeply"):
        load_folder(folder)


class Bomb:
    """What leaves a file behind where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.fault("F9")
@pytest.mark.parametrize("name", ["manifest.json", "config.toml", "state.json", "tokenizer.model", TENSORS])
def test_a_pickle_in_the_place_of_any_file(trained, run, folder, tmp_path, name, capsys):
    bomb = pickle.dumps(Bomb(tmp_path / "marker"))
    if name == "manifest.json":
        (folder / name).write_bytes(bomb)
    else:
        edit_checkpoint(folder, files={name: bomb})
    resume = ["train", str(trained / "tiny.toml"), *OPTIONS, f"--run.dir={run}", "--train.max_steps=3"]
    out = ["--out", str(tmp_path / "hf"), "--no-check"]
    for arguments in (["eval", str(run)], ["sample", str(run)], ["export", str(run), *out], resume):
        # A resume reads text with the tokenizer of its corpus and only copies the checkpoint's.
        assert main(arguments) == (0 if arguments is resume and name == "tokenizer.model" else 2)
    assert not (tmp_path / "marker").exists()
    pickle.loads(bomb)
    assert (tmp_path / "marker").exists()


@pytest.mark.fault("F9")
def test_folders_of_pickles_are_no_checkpoints(tmp_path, capsys):
    """As torch.save, torch.distributed.checkpoint and DeepSpeed write them."""
    bomb = pickle.dumps(Bomb(tmp_path / "marker"))
    step = tmp_path / "run" / "checkpoints" / "step-00000002"
    step.mkdir(parents=True)
    for name in ("model.pt", ".metadata", "__0_0.distcp", "mp_rank_00_model_states.pt", "pytorch_model.bin"):
        (step / name).write_bytes(bomb)
    for path in (step, step.parents[1], step / "model.pt"):
        assert main(["eval", str(path)]) == 2
    with pytest.raises(UserError, match=r"config\.json"):
        load_folder(step)
    (step / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(UserError, match=r"only \.bin weights, which are pickles and never loaded"):
        load_folder(step)
    assert not (tmp_path / "marker").exists()


LLAMA = {
    **{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1},
    **{"intermediate_size": 8, "vocab_size": 16},
}


@pytest.mark.fault("F45")
@pytest.mark.parametrize("name", ["x" * 5000, "step-" + "0" * 300, "step-00000001/" * 400])
def test_names_that_no_file_can_have(tmp_path, name, capsys):
    assert main(["eval", str(tmp_path / name)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("F9")
def test_nothing_is_ever_unpickled(trained, tmp_path, monkeypatch):
    """By one process, that is: torch's own exchanges of objects between the processes of a run pickle them."""

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    class Refusing:
        def __init__(self, *_, **__):
            refuse()

    for owner in (pickle, sys.modules["_pickle"], sys.modules["_compat_pickle"]):
        for name in {"load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"} & vars(owner).keys():
            monkeypatch.setattr(owner, name, Refusing if "Unpickler" in name else refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"N.")
    run, config = tmp_path / "run", str(trained / "tiny.toml")
    assert main(["train", config, *OPTIONS, f"--run.dir={run}"]) == 0
    assert main(["train", config, *OPTIONS, f"--run.dir={run}", "--train.max_steps=3"]) == 0
    assert main(["eval", str(run), "--tokens", "64"]) == 0
    assert main(["sample", str(run), "--tokens", "2"]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "hf"), "--no-check"]) == 0
    load_folder(tmp_path / "hf")
