"""tokenizer.json against SentencePiece: equal ids for every setting that can be written, a sentence for the others."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from model.errors import UserError
from model.hf.tokenizer import export_obstacle, read_facts, special_tokens_map, tokenizer_config
from model.hf.tokenizer_json import NORMAL, UNUSED, obstacle, tokenizer_json
from pretrain.using.check_texts import hard_strings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed: pip install -e .[dev]"
)

LLAMA_2 = {
    "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "add_dummy_prefix": True, "split_digits": True, "allow_whitespace_only_pieces": True,
}  # fmt: skip
OURS = {**LLAMA_2, "add_dummy_prefix": False}
SETTINGS = {
    "ours": OURS,
    "llama-2": LLAMA_2,
    "mistral": {**LLAMA_2, "split_digits": True, "character_coverage": 0.99995, "control_symbols": "[INST],[/INST]"},
    "default": {},
    "nfkc": {"normalization_rule_name": "nfkc", "byte_fallback": True},
    "nfkc, spaces kept": {**OURS, "normalization_rule_name": "nfkc"},
    "nmt_nfkc, prefix, spaces kept": {**LLAMA_2, "normalization_rule_name": "nmt_nfkc"},
    "nfkc with symbols": {**OURS, "normalization_rule_name": "nfkc", "user_defined_symbols": "<sep>,[INST]"},
    "no prefix": {"add_dummy_prefix": False, "byte_fallback": True},
    "identity, spaces removed": {**LLAMA_2, "remove_extra_whitespaces": True},
    "markers everywhere": LLAMA_2,
    "symbols": {**OURS, "user_defined_symbols": "<sep>,[INST]"},
    "pad": {**LLAMA_2, "pad_id": 3},
}
MARKS = (
    "e\u0302\u0323", "e\u0323\u0302\u0301", "a\u0301\u0302b", "\u00ea\u0323", "x\u0325\u0304\u0316", "\u0301\u0301",
    "\uac00\u11a8", "\u1100\u1161\u11a8\u11a8", "\uff76\uff9e\uff9e", "\u05e9\u05bc\u05c1", "\u03c9\u0345\u0313",
    "\u0958", "\u0915\u093c", "\u0344", "\u0fb2\u0f71\u0f80", "\u212b\u0301", "\u2126", "\u00a8\u0301", "\u1e9b\u0323",
    "\U0001d15f", "\U00016d63\U00016d67\U00016d67", "\ufdfa", "\u0600\u0661", "n\u200d\u0303", "a\r\r\nb",
    "\x01", "\x01\u0301", " \x01 a",
)  # fmt: skip
"""Marks in and out of order, single characters with rules, and clusters, beside the strings that export checks."""
STRINGS = [*hard_strings(1000), *MARKS]


def train(name: str, **changes) -> bytes:
    """A tiny model trained on Python sources, and in one case on a text that spells the markers out."""
    text = Path(io.__file__).read_text(encoding="utf-8").splitlines() * 3
    text += ["日本語 café ﬁne <s> Привет 🙂"] * 5
    if name == "markers everywhere":
        text = [f"<s> {line} </s> <unk>" for line in text]
    writer = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 420, "minloglevel": 2, **changes}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=writer, **settings)
    return writer.getvalue()


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """One folder per setting with the tokenizer's files, as an export writes them."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name, settings in SETTINGS.items():
        folder = root / name
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(train(name, **settings))
        facts = read_facts(folder / "tokenizer.model")
        (folder / "tokenizer.json").write_text(json.dumps(facts.tokenizer_json), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(facts, 64)), encoding="utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens_map(facts)), encoding="utf-8")
        (folder / "config.json").write_text('{"model_type": "llama"}')
    return root


@pytest.fixture(scope="session")
def transformers_ids(folders) -> dict[str, list[list[int]]]:
    script = (
        "import json, sys, transformers; from pathlib import Path; root = Path(sys.argv[1]);"
        "strings = json.loads((root / 'strings.json').read_text());"
        "load = transformers.AutoTokenizer.from_pretrained;"
        "ids = lambda t: [t.encode(s, add_special_tokens=False) for s in strings];"
        "answer = {f.parent.name: ids(load(f.parent)) for f in root.glob('*/config.json')};"
        "(root / 'answer.json').write_text(json.dumps(answer))"
    )
    (folders / "strings.json").write_text(json.dumps(STRINGS))
    command = [sys.executable, "-P", "-c", script, folders]
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folders / "answer.json").read_text())


def differing(folder: Path, ids: list[list[int]]) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [string for string, found in zip(STRINGS, ids, strict=True) if found != processor.encode(string)]


def test_the_hard_strings_are_many_and_the_same_every_time():
    assert len(set(STRINGS)) > 950
    assert [*hard_strings(1000), *MARKS] == STRINGS


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tokenizers_library_gives_equal_ids(folders, name):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folders / name / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(string, add_special_tokens=False).ids for string in STRINGS]
    assert differing(folders / name, ids) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_transformers_gives_equal_ids(folders, transformers_ids, name):
    assert differing(folders / name, transformers_ids[name]) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "unigram", "hard_vocab_limit": False}, "not a BPE tokenizer"),
        ({"normalization_rule_name": "nmt_nfkc_cf"}, "no tokenizer.json expresses its normaliser 'nmt_nfkc_cf'"),
        ({**OURS, "user_defined_symbols": "<a b>"}, "its user-defined symbol '<a b>' contains a space"),
        ({**LLAMA_2, "user_defined_symbols": "<sep>"}, "has user-defined symbols such as '<sep>' beside add_dummy"),
        ({**OURS, "treat_whitespace_as_suffix": True}, "it marks spaces in a way that no tokenizer.json expresses"),
    ],
)
def test_what_no_tokenizer_json_expresses_is_refused_in_one_sentence(changes, reason, tmp_path):
    (tmp_path / "t.model").write_bytes(train("other", **changes))
    assert reason in export_obstacle(tmp_path / "t.model")
    with pytest.raises(UserError) as caught:
        read_facts(tmp_path / "t.model")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unused_pieces_are_refused():
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train("other", **OURS))
    assert obstacle(proto) is None
    proto.pieces[-1].type = UNUSED
    assert obstacle(proto) == "it has unused pieces, which no tokenizer.json expresses"


def test_merges_follow_scores_and_never_make_a_marker():
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train("other", **OURS))
    normal = [i for i, entry in enumerate(proto.pieces) if entry.type == NORMAL]
    for i, score in zip(normal, [-float(i) for i in normal][::-1], strict=True):
        proto.pieces[i].score = score
    assert {"<", "s", ">"} <= {entry.piece for entry in proto.pieces}
    proto.pieces[normal[-1]].piece = "<s"
    merges = tokenizer_json(proto)["model"]["merges"]
    scores = {entry.piece: entry.score for entry in proto.pieces}
    made = [scores[first + second] for first, second in merges]
    assert made == sorted(made, reverse=True)
    assert ["<", "s"] in merges
    assert ["<s", ">"] not in merges
