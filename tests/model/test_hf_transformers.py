"""Exported folders as transformers reads them, and folders written by transformers as this code reads them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from model.hf import load_folder
from model.linear import Dense
from model.transformer import Transformer
from tests.model.hf_folders import CASES, HARD_STRINGS, build, export_model, train_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed: pip install -e .[dev]"
)

# The model's own bos, none, and SentencePiece's default dummy prefix.
TOKENIZERS = {"ours": {}, "no_bos": {"bos_id": -1, "eos_id": 1}, "prefix": {"add_dummy_prefix": True}}


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> Path:
    """Folders of all cases and tokenizers with transformers' answers in them.

    `python -P` and another working directory: a library that transformers looks for is called `kernels` too.
    """
    root = tmp_path_factory.mktemp("hf")
    tokens = torch.randint(384, (2, 40), generator=torch.Generator().manual_seed(0))
    save_file({"tokens": tokens}, root / "tokens.safetensors")
    (root / "strings.json").write_text(json.dumps(HARD_STRINGS))
    for name, changes in TOKENIZERS.items():
        train_tokenizer(root / f"{name}.model", **changes)
    for case in CASES:
        export_model(build(case), root / "ours.model", root / case, torch.float32)
    for name in ("no_bos", "prefix"):
        export_model(build("dense"), root / f"{name}.model", root / name, torch.float32)
    script = Path(__file__).with_name("ask_transformers.py")
    done = subprocess.run([sys.executable, "-P", script, root], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("case", list(CASES))
def test_logits_equal_ours(answered, case):
    tokens = load_file(answered / "tokens.safetensors")["tokens"]
    with torch.no_grad():
        ours = build(case)(tokens)
    theirs = load_file(answered / case / "logits.answer")["logits"]
    assert ours.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("case", list(CASES))
def test_a_folder_of_theirs_in_many_shards_loads(answered, case):
    folder = answered / "saved" / case
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    tokens = load_file(answered / "tokens.safetensors")["tokens"]
    config, weights = load_folder(folder)
    model = Transformer(config, Dense.Config(), torch.float32)
    model.load_state_dict(dict(weights), strict=True)
    with torch.no_grad():
        assert (model(tokens) - load_file(answered / case / "logits.answer")["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize(("folder", "name"), [("dense", "ours"), ("no_bos", "no_bos"), ("prefix", "prefix")])
def test_token_ids_and_text_equal_sentencepiece(answered, folder, name):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(answered / f"{name}.model"))
    answer = json.loads((answered / folder / "tokenizer.answer").read_text())
    for string, ids, text in zip(HARD_STRINGS, answer["ids"], answer["texts"], strict=True):
        assert ids == processor.encode(string), repr(string)
        assert text == processor.decode(ids), repr(string)
    bos = [] if name == "no_bos" else [processor.bos_id()]
    assert answer["with_special"] == bos + processor.encode("x")
    assert answer["size"] == processor.vocab_size()
