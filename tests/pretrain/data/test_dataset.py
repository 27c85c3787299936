"""TokenDataset: every token once per epoch, in an order that depends on (seed, epoch) alone."""

import io
import itertools
import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from corpora import as_if_written_so

from model.errors import UserError
from pretrain.cli import main
from pretrain.data.dataset import IGNORE, TokenDataset
from pretrain.data.manifest import load_manifest
from pretrain.data.prepare import PrepareOptions, prepare
from pretrain.data.sources.text import TextSource
from pretrain.data.tokenizer import SentencePieceTokenizer
from pretrain.data.tokenizer.training import SETTINGS


def flat(folder, split) -> np.ndarray:
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*.bin"))]).astype(np.int64)


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    """Shards of 1000 tokens, so that samples straddle them."""
    options = PrepareOptions(out=tmp_path_factory.mktemp("data") / "c", vocab_size=320, shard_tokens=1000)
    prepare(TextSource([str(texts)]), options, say=print)
    return options.out


def test_shards_are_small_enough_to_matter(corpus):
    assert len(list(corpus.glob("train-*.bin"))) > 10


def test_concat_windows_in_natural_order(corpus):
    tokens, data = flat(corpus, "val"), TokenDataset(corpus, "val", 48, "concat", seed=3)
    assert (data.n_tokens, data.n_samples) == (len(tokens), (len(tokens) - 1) // 48)
    batch = data.batch(0, data.n_samples)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert np.array_equal(batch.tokens.numpy().ravel(), tokens[: 48 * data.n_samples])
    assert np.array_equal(batch.targets.numpy().ravel(), tokens[1 : 48 * data.n_samples + 1])


def test_an_epoch_visits_every_window_once(corpus):
    tokens, data = flat(corpus, "train"), TokenDataset(corpus, "train", 48, "concat", seed=3)
    rows = {tuple(row) for row in data.batch(0, data.n_samples).tokens.tolist()}
    assert rows == {tuple(tokens[i * 48 : i * 48 + 48]) for i in range(data.n_samples)}


def test_order_differs_by_seed_and_epoch(corpus):
    data = TokenDataset(corpus, "train", 48, "concat", seed=3)
    n = data.n_samples
    first, second = data.batch(0, n).tokens, data.batch(n, n).tokens
    assert not torch.equal(first, second)
    assert not torch.equal(first, TokenDataset(corpus, "train", 48, "concat", seed=4).batch(0, n).tokens)
    assert torch.equal(first, TokenDataset(corpus, "train", 48, "concat", seed=3).batch(0, n).tokens)


@pytest.mark.parametrize("packing", ["concat", "document"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_batch_is_its_parts_over_epoch_borders_too(corpus, split, packing):
    data = TokenDataset(corpus, split, 48, packing, seed=3)
    start = 5 * data.n_samples - 3
    whole = data.batch(start, 8)
    for size in (1, 2, 4):
        parts = [data.batch(start + i, size) for i in range(0, 8, size)]
        assert torch.equal(whole.tokens, torch.cat([p.tokens for p in parts]))
        assert torch.equal(whole.targets, torch.cat([p.targets for p in parts]))


@pytest.mark.parametrize("seq_len", [48, 5000])
def test_document_rows(corpus, seq_len):
    data, tokenizer = (
        TokenDataset(corpus, "val", seq_len, "document", seed=0),
        SentencePieceTokenizer(corpus / "tokenizer.model"),
    )
    tokens = flat(corpus, "val")
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    assert data.n_samples == len(starts)
    batch = data.batch(0, data.n_samples)
    for row, start, end in zip(range(data.n_samples), starts, [*starts[1:], len(tokens)], strict=True):
        document = tokens[start:end][:seq_len]
        n = len(document)
        assert batch.tokens[row, :n].tolist() == document.tolist()
        assert (batch.tokens[row, n:] == tokenizer.eos_id).all()
        assert batch.targets[row, : n - 1].tolist() == document[1:].tolist()
        assert (batch.targets[row, n - 1 :] == IGNORE).all()


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_count_without_reading(corpus, packing):
    data = TokenDataset(corpus, "train", 1300, packing, seed=1)
    for cursor, n in [(0, 5), (7, 3), (data.n_samples - 1, 4)]:
        batch = data.batch(cursor, n)
        real, targets = data.count(cursor, n)
        assert targets == int((batch.targets != IGNORE).sum())
        if packing == "concat":
            assert real == n * 1300
        else:
            assert real == targets + n, "each document has one token more than targets"


def test_target_bytes(corpus, salad):
    data = TokenDataset(corpus, "val", 5000, "document", seed=0)
    batch = data.batch(0, data.n_samples)
    tokenizer = SentencePieceTokenizer(corpus / "tokenizer.model")
    texts = [tokenizer.decode(row.tolist()) for row in batch.tokens]
    assert set(texts) <= set(salad)
    assert data.target_bytes(0, data.n_samples) == sum(len(text.encode()) for text in texts)


def prefixed(folder, salad, more=(), **settings):
    """Short documents as a tokenizer writes them that adds a space to each, as LLaMA's does."""
    texts = [line for text in salad for line in text.splitlines()][:120]
    texts += [" a space begins it", "  two do", "\n", "ünïcode ✓", "ends with one ", *more]
    (folder / "text").mkdir()
    for index, text in enumerate(texts):
        (folder / "text" / f"{index:03d}.txt").write_text(text)
    options = SETTINGS | {"add_dummy_prefix": True, "vocab_size": 320, "num_threads": 1, **settings}
    with open(folder / "prefix.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=file, **options)
    out = folder / "data"
    prepare(
        TextSource([str(folder / "text")]),
        PrepareOptions(out=out, tokenizer=folder / "prefix.model", val_fraction=0.3),
        say=print,
    )
    return out, load_manifest(out)


@pytest.mark.parametrize("suffix", [False, True])
def test_target_bytes_are_those_of_the_text_without_an_added_space(salad, tmp_path, suffix):
    folder, manifest = prefixed(tmp_path, salad, treat_whitespace_as_suffix=suffix)
    assert manifest.val.documents > 20
    for split in ("train", "val"):
        expected = manifest.split(split).bytes
        for packing, seq_len in (("document", 300), ("concat", 1), ("concat", manifest.split(split).tokens - 1)):
            data = TokenDataset(folder, split, seq_len, packing, seed=0)
            assert data.target_bytes(0, data.n_samples) == expected, (split, packing, seq_len)
            assert sum(data.target_bytes(row, 1) for row in range(data.n_samples)) == expected


def test_target_bytes_without_markers(salad, tmp_path):
    """The first piece of the first document is no target, so the rest of the text counts."""
    folder, manifest = prefixed(tmp_path, salad, bos_id=-1, eos_id=-1)
    data = TokenDataset(folder, "val", 1, "concat", seed=0)
    piece = SentencePieceTokenizer(folder / "tokenizer.model").decode([int(flat(folder, "val")[0])])
    assert data.target_bytes(0, data.n_samples) == manifest.val.bytes - len(piece.encode())


LOSSY = (
    "\ufb01ve  \uff21\t b \n",
    "  \u00e9e\u0301  \u6f22\u5b57 ",
    "\U0001f642" * 9,
    "plain words ",
    "\u2581a\u2581\u2581b",
)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc", "add_dummy_prefix": False},
        {"byte_fallback": False, "character_coverage": 0.98},
        {"byte_fallback": False, "character_coverage": 0.98, "bos_id": -1, "add_dummy_prefix": False},
        {"add_dummy_prefix": False},
    ],
)
def test_target_bytes_are_the_texts_whatever_the_tokenizer_loses(salad, tmp_path, settings):
    folder, manifest = prefixed(tmp_path, salad, LOSSY, **settings)
    markers = settings.get("bos_id") != -1
    for split in ("train", "val"):
        entry = manifest.split(split)
        sizes = np.fromfile(folder / f"{split}.bytes.bin", "<u8").tolist()
        assert (len(sizes), sum(sizes)) == (entry.documents, entry.bytes)
        rows = TokenDataset(folder, split, 500, "document", seed=0)
        if markers:  # else the first piece of each document is no target
            order = sorted(rows.target_bytes(row, 1) for row in range(rows.n_samples))
            assert order == sorted(sizes)
        windows = TokenDataset(folder, split, 1, "concat", seed=0)
        found = sum(windows.target_bytes(row, 1) for row in range(windows.n_samples))
        assert found == windows.target_bytes(0, windows.n_samples)
        assert found == entry.bytes if markers else entry.bytes - 20 < found <= entry.bytes
        assert windows.bytes_note is None


def without_record(folder, new):
    """A copy of a prepared folder as it was before the bytes of each document were written down."""
    shutil.copytree(folder, new)
    manifest = json.loads((new / "manifest.json").read_text())
    for split in ("train", "val"):
        (new / manifest[split].pop("text_bytes")["name"]).unlink()
    (new / "manifest.json").write_text(json.dumps(manifest))
    return new


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_tokenizer_that_keeps_every_byte_needs_no_record(corpus, tmp_path, packing):
    old = without_record(corpus, tmp_path / "old")
    for seq_len in (16, 700, 3000):
        one, two = (TokenDataset(folder, "val", seq_len, packing, 0) for folder in (corpus, old))
        assert [one.target_bytes(i, 1) for i in range(one.n_samples)] == [
            two.target_bytes(i, 1) for i in range(two.n_samples)
        ]
        assert two.bytes_note is not None
        assert "text that its tokens spell" in two.bytes_note


def test_an_earlier_folder_counts_what_tokens_spell(salad, tmp_path):
    folder, manifest = prefixed(tmp_path, salad, ["\ufb01 \ufb01  \ufb01"] * 3, normalization_rule_name="nfkc")
    old = without_record(folder, tmp_path / "old")
    data = TokenDataset(old, "train", 500, "document", seed=0)
    tokenizer = SentencePieceTokenizer(old / "tokenizer.model")
    starts, tokens = np.fromfile(old / "train.index.bin", "<u8").astype(np.int64), flat(old, "train")
    texts = [tokenizer.decode(tokens[a:b].tolist()) for a, b in itertools.pairwise(starts)]
    assert data.target_bytes(0, data.n_samples) == sum(len(text.encode()) for text in texts) < manifest.train.bytes


@pytest.mark.fault("F23")
@pytest.mark.parametrize("starts", [[0, 0, 0], [9, 9, 9], [2**40] * 3, [0, 5, 3]])
def test_a_damaged_index_is_named_where_bytes_are_counted(prepared, starts):
    index = prepared / "val.index.bin"
    damaged = np.fromfile(index, "<u8")
    damaged[:] = starts[-1]
    damaged[:3] = starts
    damaged.tofile(index)
    as_if_written_so(prepared)
    data = TokenDataset(prepared, "val", 16, "concat", 0)
    with pytest.raises(UserError, match=r"val\.index\.bin: the starts of the documents are not in order"):
        data.target_bytes(0, data.n_samples)


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_tokens_per_row_are_real_ones(corpus, packing):
    data = TokenDataset(corpus, "train", 1300, packing, seed=1)
    real, _ = data.count(0, data.n_samples)
    assert data.tokens_per_row == pytest.approx(real / data.n_samples)


def test_fingerprint_and_attributes(corpus, prepared):
    data = TokenDataset(corpus, "train", 48, "concat", 0)
    assert data.fingerprint == TokenDataset(corpus, "val", 9, "document", 1).fingerprint
    assert data.fingerprint != TokenDataset(prepared, "train", 48, "concat", 0).fingerprint
    assert (data.vocab_size, data.seq_len, data.tokenizer.path) == (320, 48, corpus / "tokenizer.model")


def test_too_short(corpus):
    with pytest.raises(UserError, match=r"data\.path: corpus too short, .* train\.seq_len \+ 1 = 1000001"):
        TokenDataset(corpus, "train", 1_000_000, "concat", 0)


def test_tokenizer_of_another_corpus(prepared, texts, tmp_path):
    other, part = tmp_path / "other", [str(path) for path in sorted(texts.iterdir())[:20]]
    assert main(["prepare", "--text", *part, "--out", str(other), "--vocab-size", "320"]) == 0
    (prepared / "tokenizer.model").write_bytes((other / "tokenizer.model").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.model: this tokenizer did not make the shards"):
        TokenDataset(prepared, "train", 16, "concat", 0)


@pytest.mark.fault("F23")
def test_token_beyond_the_vocabulary(prepared):
    shard = prepared / "val-00000.bin"
    tokens = np.fromfile(shard, "<u2")
    tokens[3] = 320
    tokens.tofile(shard)
    as_if_written_so(prepared)
    with pytest.raises(UserError, match=r"val-00000\.bin: token 320 is beyond the vocabulary of 320"):
        TokenDataset(prepared, "val", 16, "concat", 0).batch(0, 1)


@pytest.mark.fault("F23")
def test_document_starts_out_of_order(prepared):
    index = prepared / "train.index.bin"
    starts = np.fromfile(index, "<u8")
    starts[[2, 3]] = starts[[3, 2]]
    starts.tofile(index)
    as_if_written_so(prepared)
    with pytest.raises(UserError, match=r"train\.index\.bin: the starts of the documents are not in order"):
        TokenDataset(prepared, "train", 16, "document", 0)


@pytest.fixture
def unmarked(texts, tmp_path):
    """Prepare documents with a tokenizer that has neither bos nor eos."""

    def make(*documents: str):
        model = io.BytesIO()
        sentences = [line for path in sorted(texts.iterdir()) for line in path.read_text().splitlines()]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=100, bos_id=-1, eos_id=-1,
            add_dummy_prefix=False, minloglevel=2,
        )  # fmt: skip
        (tmp_path / "bare.model").write_bytes(model.getvalue())
        lines = [json.dumps({"text": document}) for document in documents]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        options = PrepareOptions(out=tmp_path / "bare", tokenizer=tmp_path / "bare.model", val_fraction=0.4)
        prepare(TextSource([str(tmp_path / "rows.jsonl")]), options, say=print)
        return options.out

    return make


def test_documents_of_one_token_are_no_rows_of_their_own(unmarked):
    folder = unmarked(*["a"] * 30, *["abcdefghij"] * 30)
    for split in ("train", "val"):
        data = TokenDataset(folder, split, 16, "document", 0)
        starts = np.fromfile(folder / f"{split}.index.bin", "<u8").astype(np.int64)
        lengths = np.diff(starts)
        assert lengths.min() == 1
        assert data.n_samples == (lengths > 1).sum()
        batch = data.batch(0, data.n_samples)
        assert ((batch.targets != IGNORE).sum(dim=1) == lengths[lengths > 1][0] - 1).all()
        assert min(data.count(i, 1)[1] for i in range(data.n_samples)) > 0
        assert data.tokens_per_row == lengths[lengths > 1][0]


def test_only_documents_of_one_token(unmarked):
    folder = unmarked(*"abcdefghij" * 4)
    with pytest.raises(UserError, match=r'data\.packing: "document" leaves split train .* data\.packing = "concat"'):
        TokenDataset(folder, "train", 16, "document", 0)
    assert TokenDataset(folder, "train", 4, "concat", 0).n_samples > 1


def test_rows_of_one_token_predict_nothing(corpus):
    with pytest.raises(UserError, match=r"data\.packing: .* nothing to predict"):
        TokenDataset(corpus, "train", 1, "document", 0)
