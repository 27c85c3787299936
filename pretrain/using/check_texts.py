"""The texts that an exported tokenizer is checked on: hard strings, and whole held-out documents."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from model.errors import UserError
from pretrain.checkpoint.read import Checkpoint, tokenizer_of
from pretrain.data.blocks import read_blocks
from pretrain.data.manifest import load_manifest
from pretrain.data.open import Dataset, open_dataset
from pretrain.data.shards import Tokens, document_starts
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.verify import verify_split

FRAGMENTS = (
    " ", "  ", "     ", "\t", "\n", "\r\n", "\r", "\n\n\n", "\t \t", "\u00a0", "\u3000", "\u2009", "\u200b", "\ufeff",
    "a", "word", "The quick brown fox", "x" * 70, "antidisestablishmentarianism", "don't", "state-of-the-art",
    "0", "42", "1234567890", "3.14159", "1,000,000", "0x1F", "²", "½", "①", "ﬁ", "ﬄ", "ſ", "ＡＢｃ１２３", "ｱｲｳ",
    "ｶﾞ", "～", "\u1112\u1161\u11ab", "Vie\u0323\u0302t", "\uff21\u0301",
    "é", "e\u0301", "n\u0303", "A\u030a", "café naïve", "ß", "İ", "ŉ", "Ω", "Å", "Привет, мир", "שלום", "مرحبا",
    "日本語のテキスト", "中文，没有空格。", "한국어", "हिन्दी", "ไทย", "🙂", "👩\u200d🚀", "🇩🇪", "👍🏽", "𝔘𝔫𝔦",
    "\U0010fffd",
    "\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x85", "\u2028", "\u202e", "\u00ad",
    "<s>", "</s>", "<unk>", "<pad>", "<0x0A>", "<|endoftext|>", "[INST]", "<<SYS>>", "<s", "s>", "</", "▁", "▁▁", "▁a",
    "!", "...", "…", "“quoted”", "--", "—", "$", "€", "#", "@", "\\", "\\n", "`", "{}", "[]", "()", "://", "%20",
    "&amp;",
    "def f(x):\n    return x ** 2  # square\n", "if (a<b) {\n\treturn a;\n}\n", "for (;;) ++i;", "<p class=\"a\">b</p>",
    "{\"k\": [1, 2.5e-3, null]}", "https://example.org/a?b=c&d=%C3%A9", "SELECT * FROM t WHERE a = 'b';",
)  # fmt: skip


def hard_strings(count: int) -> Iterator[str]:
    """`count` texts, the same ones every time: the empty one, each fragment alone, then joined fragments.

    The joins come from a fixed sequence of numbers: spaces at either end, runs of them and markers inside words occur.
    """
    yield from ("", *FRAGMENTS)[:count]
    state = 1
    for _ in range(count - len(FRAGMENTS) - 1):
        parts = []
        for _ in range(2 + state % 5):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            parts.append(FRAGMENTS[(state >> 33) % len(FRAGMENTS)])
        yield ("", " ", "  ")[(state >> 20) % 3].join(parts)


DOCUMENTS, CHARACTERS = 1000, 2_000_000
"""Most documents that are read, and the characters after which none is."""


def held_out_split(checkpoint: Checkpoint) -> Dataset | None:
    """The split as the run reads it; None when its corpora are no longer where they were, whole and readable."""
    config = checkpoint.config
    try:
        dataset = open_dataset(config, "val")
        for path in config.data.paths.values():
            verify_split(path, "val")
    except UserError:
        return None
    return dataset if dataset.fingerprint == checkpoint.manifest.data_fingerprint else None


def held_out_documents(checkpoint: Checkpoint) -> list[str] | None:
    """The first held-out documents, decoded from their tokens; None without a `held_out_split` or a tokenizer.

    As many of each corpus of a mixture.
    """
    folders, tokenizer = list(map(Path, checkpoint.config.data.paths.values())), tokenizer_of(checkpoint)
    if tokenizer is None or held_out_split(checkpoint) is None:
        return None
    return [text for folder in folders for text in _documents(folder, tokenizer, len(folders))]


def _documents(folder: Path, tokenizer: Tokenizer, folders: int) -> list[str]:
    """The first held-out documents of a corpus, one of so many that share DOCUMENTS and CHARACTERS."""
    manifest = load_manifest(folder)
    tokens, starts = Tokens(folder, manifest, "val", read_blocks(folder)), document_starts(folder, manifest, "val")
    documents: list[str] = []
    left = CHARACTERS // folders
    for start, stop in pairwise(starts[: DOCUMENTS // folders + 1]):
        documents.append(tokenizer.decode(tokens.read(int(start), int(stop - start)).tolist()))
        left -= len(documents[-1])
        if left < 0:
            break
    return documents
