"""tokenizer.json: what transformers makes of a text, bytes that add up, markers, and a sentence for what is none."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults.mutate import mutated_bytes, mutated_data
from json_tokenizers import KINDS, held_out_lines, write_tokenizer

from model.errors import UserError
from model.hf.tokenizer import folder_tokenizer
from pretrain.cli import main
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import read_manifest
from pretrain.data.tokenizer import kept_tokenizer, open_tokenizer
from pretrain.data.tokenizer.json_file import JsonTokenizer
from pretrain.using.check_texts import hard_strings

TEXTS = [*held_out_lines(), *hard_strings(300)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder of each kind with what an export writes of the tokenizer."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        tokenizer = open_tokenizer(write_tokenizer(root / "source" / kind, kind))
        (root / kind).mkdir()
        for name, content in folder_tokenizer(tokenizer.kept, root, 64).files.items():
            (root / kind / name).write_bytes(content)
        (root / kind / "config.json").write_text('{"model_type": "llama"}')
    return root


@pytest.fixture(scope="module")
def answers(folders) -> dict[str, dict]:
    """What transformers says of each of them, in a process of its own."""
    pytest.importorskip("transformers")
    script = (
        "import json, sys, transformers; from pathlib import Path; root = Path(sys.argv[1]);"
        "texts = json.loads((root / 'texts.json').read_text());"
        "load = transformers.AutoTokenizer.from_pretrained;"
        "ids = lambda t: [t.encode(s, add_special_tokens=False) for s in texts];"
        "say = lambda t: {'ids': ids(t), 'around': t.encode('a'), 'size': len(t), 'eos': t.eos_token_id};"
        "answer = {f.parent.name: say(load(f.parent)) for f in root.glob('*/config.json')};"
        "(root / 'answer.json').write_text(json.dumps(answer))"
    )
    (folders / "texts.json").write_text(json.dumps(TEXTS))
    command = [sys.executable, "-P", "-c", script, folders]
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folders / "answer.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(folders, answers, kind):
    tokenizer = open_tokenizer(folders / "source" / kind)
    ids = tokenizer.encode_many(TEXTS)
    assert ids == [tokenizer.encode(text) for text in TEXTS]
    assert [text for text, ours, theirs in zip(TEXTS, ids, answers[kind]["ids"], strict=True) if ours != theirs] == []
    assert answers[kind]["size"] == tokenizer.vocab_size
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert answers[kind]["around"] == [*begin, *tokenizer.encode("a")]
    assert answers[kind]["eos"] == tokenizer.eos_id


@pytest.mark.parametrize(
    ("kind", "bos", "eos", "lost"),
    [
        ("gpt2", None, "<|endoftext|>", []),
        ("llama3", "<|begin_of_text|>", "<|end_of_text|>", []),
        ("llama2", "<s>", "</s>", []),
        ("unigram", None, "</s>", ["ligatures and full-width letters"]),
        ("wordpiece", "[CLS]", "[SEP]", ["newlines", "capital letters", "accents"]),
    ],
)
def test_markers_and_losses(folders, kind, bos, eos, lost):
    tokenizer = open_tokenizer(folders / "source" / kind)
    names = [None if i is None else tokenizer.piece(i) for i in (tokenizer.bos_id, tokenizer.eos_id)]
    assert names == [bos, eos]
    assert set(lost) <= set(tokenizer.losses())
    assert bool(lost) == bool(tokenizer.losses())
    again = kept_tokenizer(folders, tokenizer.kept)
    assert again.identity == tokenizer.identity
    assert again.kept == tokenizer.kept


def test_a_marker_in_a_text_is_ordinary_characters(folders):
    for kind, marker in (("gpt2", "<|endoftext|>"), ("llama3", "<|eot_id|>"), ("llama2", "</s>")):
        tokenizer = open_tokenizer(folders / "source" / kind)
        special = {i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == marker}
        text = f"a{marker}b"
        ids = tokenizer.encode(text)
        assert not special & set(ids)
        assert tokenizer.decode([*ids, *special]) == text  # and a real one stands for no text


def test_markers_are_heard_from_the_files_beside(tmp_path):
    path = write_tokenizer(tmp_path, "llama3")
    said = {"bos_token": None, "eos_token": {"content": "<|eot_id|>"}, "pad_token": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 2, 1)
    assert tokenizer.notes == (
        f"{path}: no token begins a document",
        f"{path}: a document ends with '<|eot_id|>', of tokenizer_config.json",
    )
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|gone|>"}')
    with pytest.raises(UserError, match=r"eos_token '<\|gone\|>' of tokenizer_config\.json is not in its vocabulary"):
        open_tokenizer(tmp_path)


def test_truncation_and_padding_of_the_file_are_left_out(tmp_path):
    tokenizer = KINDS["gpt2"]()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    found = open_tokenizer(tmp_path)
    text = TEXTS[0]
    assert found.decode(found.encode(text)) == text
    assert found.encode_many([text, "a"]) == [found.encode(text), found.encode("a")]
    written = json.loads(folder_tokenizer(found.kept, tmp_path, 64).files["tokenizer.json"])
    assert written == json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}


def test_an_exported_file_is_the_given_one_where_it_treats_text_as_training_does(folders):
    for kind in ("gpt2", "llama3"):
        written, given = (root / kind / "tokenizer.json" for root in (folders, folders / "source"))
        assert written.read_bytes() == given.read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", r"not a tokenizer\.json that tokenizers [\d.]+ can read"),
        ('{"model": 3', r"not a tokenizer\.json that tokenizers [\d.]+ can read"),
        ('{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":2},"merges":[]}}', "no token has the id 1, though"),
        (
            '{"version":"1.0","model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}',
            "no token has the id 0",
        ),
        ('{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}', "its vocabulary is empty"),
        (
            '{"version":"1.0","model":{"type":"BPE","dropout":0.1,"vocab":{"a":0},"merges":[]}}',
            r"dropout of 0\.1 gives",
        ),
        ("neither of the two", "not a SentencePiece model; give a .model file or a tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_said_and_nothing_is_written(tmp_path, capsys, content, said):
    (tmp_path / "file").write_text(content)
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    command = ["prepare", "--text", str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path / "file")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_a_replaced_corpus_goes_with_it_and_a_given_one_stays(folders, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some text\n" * 10_000)
    out, model = tmp_path / "out", tmp_path / "given"
    command = ["prepare", "--text", str(tmp_path / "a.txt"), "--out", str(out), "--overwrite"]
    given = ["--tokenizer", str(write_tokenizer(model, "gpt2"))]
    assert main([*command, *given]) == 0
    assert {path.name for path in out.glob("tokenizer*")} == {"tokenizer.json", "tokenizer_config.json"}
    assert main([*command, "--vocab-size", "275"]) == 0
    assert {path.name for path in out.glob("tokenizer*")} == {"tokenizer.model"}
    assert main([*command, *given]) == 0
    assert {path.name for path in out.glob("tokenizer*")} == {"tokenizer.json", "tokenizer_config.json"}
    assert main([*command[:3], "--out", str(model), *given]) == 2
    assert "holds the --tokenizer, whose files the corpus would replace" in capsys.readouterr().err
    assert [path.name for path in model.iterdir()] == ["tokenizer.json"]


def test_a_folder_without_a_tokenizer_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.model and no tokenizer\.json there"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_add_up_to_the_texts(folders, tmp_path, kind):
    """Whatever a tokenizer loses or adds, and however the tokens are cut, the split has the bytes of its text."""
    text = "".join(f"{line}\n" for line in held_out_lines(300)) + "Ünïcode ﬁne — 日本語 🙂 <s> </s> <|endoftext|>\n"
    rows = (json.dumps({"text": text[i : i + 400]}) + "\n" for i in range(0, 9000, 400))
    (tmp_path / "a.jsonl").write_text("".join(rows))
    out, source = tmp_path / "out", folders / "source" / kind
    arguments = ["prepare", "--text", str(tmp_path / "a.jsonl"), "--tokenizer", str(source), "--out", str(out)]
    assert main(arguments) == 0
    manifest = read_manifest(out)
    tokenizer = open_tokenizer(source)
    assert manifest.tokenizer is not None
    assert (manifest.tokenizer.file, manifest.format_version) == ("tokenizer.json", 2)
    assert (manifest.tokenizer.bos, manifest.tokenizer.eos) == (tokenizer.bos_id, tokenizer.eos_id)
    for split in ("train", "val"):
        entry = manifest.split(split)
        data = TokenDataset(out, split, 7, "concat", 0)
        # Every token is a target but the first, and those after the last whole row.
        row = [data._bytes.between(start, min(start + 7, entry.tokens)) for start in range(0, entry.tokens, 7)]
        assert sum(row) == entry.bytes
        assert min(row) >= 0
        whole = TokenDataset(out, split, 4096, "document", 0)
        first = sum(whole._bytes.between(int(start), int(start) + 1) for start in whole._starts[:-1])
        assert whole.target_bytes(0, whole.n_samples) == entry.bytes - first
    assert main(["prepare", "--verify", str(out)]) == 0


def test_byte_level_tokens_have_just_the_bytes_they_spell(folders):
    tokenizer = open_tokenizer(folders / "source" / "gpt2")
    spelt = tokenizer.token_bytes()
    for text in TEXTS:
        assert sum(spelt[i] for i in tokenizer.encode(text)) == len(text.encode())
    assert spelt[tokenizer.eos_id] == 0


def test_without_the_library_that_is_said(tmp_path, monkeypatch):
    path = write_tokenizer(tmp_path, "gpt2")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs a library to be read: pip install tokenizers -c constraints\.txt"):
        open_tokenizer(path)


def test_a_text_that_cannot_be_encoded_is_said(tmp_path, capsys):
    rules = json.loads(KINDS["wordpiece"]().to_str())
    rules["model"]["vocab"] = {"some" if token == "[UNK]" else token: i for token, i in rules["model"]["vocab"].items()}
    rules["added_tokens"], rules["post_processor"] = [], None
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(UserError, match=r"tokenizer\.json: a text cannot be encoded \(.*\[UNK\].*\); give another"):
        open_tokenizer(tmp_path).encode("\u6f22")


@pytest.mark.fault("F45")
@pytest.mark.parametrize("kind", ["llama3", "unigram"])
def test_a_strangers_file_is_read_or_said(kind):
    whole = KINDS[kind]().to_str()
    outcomes, said = set(), []
    for seed in range(25):
        rng = random.Random(f"{kind}{seed}")
        changed = json.loads(whole)
        key = rng.choice([key for key, value in changed.items() if isinstance(value, dict | list)])
        changed[key] = mutated_data(rng, changed[key])
        data = json.dumps(changed).encode() if seed % 4 else mutated_bytes(rng, whole.encode())
        try:
            tokenizer = JsonTokenizer(Path("tokenizer.json"), data, {})
            tokenizer.decode(tokenizer.encode("the quick\n é🙂 fox"))
            outcomes.add((len(tokenizer.losses()) < 9, len(tokenizer.token_bytes()) > 9, tokenizer.added_space()))
            folder_tokenizer(tokenizer.kept, Path(), 64)
        except UserError as error:
            outcomes.add("said")
            said.append(str(error))
    assert len(outcomes) > 1
    assert "\n" not in "".join(said)
