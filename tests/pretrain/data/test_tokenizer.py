"""Tokenizers: ours loses nothing, others' work, everything else is refused in one sentence."""

import io
import os
import pickle

import pytest
import sentencepiece

from model.errors import UserError
from pretrain.data.tokenizer import SentencePieceTokenizer, train_tokenizer

HARD = [
    " leading",
    "  two  spaces ",
    "\n\n\ttab\n    indented:\n",
    "crlf\r\nline\r\n",
    "emoji 🎉👩‍👩‍👧 and accents éàü",
    "漢字かな交じり文",
    "digits 1234567890 3.14",
    "<s> </s> <unk> <0x0A>",
    "\x01\x7f control",
    "combining e\u0301 and nbsp \u00a0",
    "ﬁ ligature ½ ①",
    "x" * 3000,
]


@pytest.fixture(scope="session")
def model(salad) -> bytes:
    return train_tokenizer([*salad, "def f(x):\n    return x\n" * 300], 400)


@pytest.fixture
def tokenizer(model, tmp_path) -> SentencePieceTokenizer:
    (tmp_path / "t.model").write_bytes(model)
    return SentencePieceTokenizer(tmp_path / "t.model")


def other(salad, **settings) -> bytes:
    model = io.BytesIO()
    lines = (line for text in salad for line in text.splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, minloglevel=2, **settings)
    return model.getvalue()


@pytest.mark.parametrize("text", HARD)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", HARD)
def test_token_bytes_add_up_to_the_text(tokenizer, text):
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())


def test_special_ids_and_their_bytes(tokenizer):
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, None)
    assert tokenizer.token_bytes()[:3].tolist() == [0, 0, 0]
    assert tokenizer.token_bytes().shape == (400,)
    assert not {0, 1, 2} & set(tokenizer.encode(" ".join(HARD)))


def test_newlines_are_learnt(tokenizer):
    assert tokenizer.encode("\n")[0] >= 259, "a newline is a piece, not one of the 256 bytes"
    assert len(tokenizer.encode("):\n")) == 1


def test_many_equals_one_by_one(tokenizer, salad):
    assert tokenizer.encode_many(salad, threads=3) == [tokenizer.encode(text) for text in salad]


def test_training_is_deterministic_and_knows_no_path(model, salad):
    assert model == train_tokenizer(iter([*salad, "def f(x):\n    return x\n" * 300]), 400)
    assert b"/" not in model.replace(b"</s>", b"")


def test_long_lines_are_cut_not_dropped():
    tokens = train_tokenizer(["abcd" * 50_000], 270)
    assert b"abcdabcd" in tokens


def test_vocabulary_too_large_names_the_largest_possible(salad):
    with pytest.raises(UserError, match=r"--vocab-size 90000: too large .* the largest possible is (\d+)") as caught:
        train_tokenizer(salad, 90_000)
    largest = int(str(caught.value).split()[-1])
    assert train_tokenizer(salad, largest)
    with pytest.raises(UserError):
        train_tokenizer(salad, largest + 1)


def test_vocabulary_too_small_names_the_smallest_possible(salad):
    with pytest.raises(UserError, match=r"--vocab-size 100: too small .* the smallest possible is (\d+)") as caught:
        train_tokenizer(salad, 100)
    assert train_tokenizer(salad, int(str(caught.value).split()[-1]))


def test_a_llama_model(salad, tmp_path):
    path = tmp_path / "llama.model"
    path.write_bytes(other(salad, vocab_size=400, model_type="bpe", byte_fallback=True))
    tokenizer = SentencePieceTokenizer(path)
    ids = tokenizer.encode("abc\ndef")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert tokenizer.decode(ids) == "abc\ndef".replace("\n", " ")  # its normalisation, not ours
    assert tokenizer.token_bytes()[ids].sum() == len("abc\ndef") + 1  # and the space it puts in front


def test_a_t5_model(salad, tmp_path):
    path = tmp_path / "t5.model"
    path.write_bytes(other(salad, vocab_size=160, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    tokenizer = SentencePieceTokenizer(path)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id) == (0, 1, 2, None)
    assert tokenizer.decode(tokenizer.encode("abc fed")) == "abc fed"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"{}", pickle.dumps(Bomb())])
def test_no_sentencepiece_model(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.model: not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "t.model")
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_or_missing_model(model, tmp_path):
    (tmp_path / "t.model").write_bytes(model[: len(model) // 2])
    with pytest.raises(UserError, match="not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "t.model")
    with pytest.raises(UserError, match="cannot be read"):
        SentencePieceTokenizer(tmp_path / "absent.model")
