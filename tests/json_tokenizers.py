"""tokenizer.json files of every usual kind, trained in a moment on Python's own sources."""

import io
import json
import pydoc_data.topics
import shutil
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
"""Llama 3's pattern, but for its look-ahead."""


def training_lines() -> list[str]:
    code = Path(io.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    return [*code, *["日本語 café ﬁne Привет 🙂\n"] * 5]


def held_out_lines(count: int = 1000) -> list[str]:
    """As many lines of code as of prose, none of them empty, with their spaces at the beginning."""
    code = [line for line in Path(shutil.__file__).read_text(encoding="utf-8").splitlines() if line.strip()]
    prose = [line for text in pydoc_data.topics.topics.values() for line in text.splitlines() if line.strip()]
    half = count // 2
    return [*code[:half], *prose[:half]]


def gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **_special("<|endoftext|>"))
    )


def llama3() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pieces = pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(pieces))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = _special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **special))
    template = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def llama2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence(list(steps))
    special = _special("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=500, limit_alphabet=90, **special))
    # Byte pieces are ordinary ones there.
    return _without_special(tokenizer, "<0x")


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _trained(tokenizer, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **_special("</s>", "<unk>")))


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=400, **_special("[PAD]", "[UNK]", "[CLS]", "[SEP]")))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": gpt2, "llama3": llama3, "llama2": llama2, "unigram": unigram, "wordpiece": word_piece,
}  # fmt: skip


def write_tokenizer(folder: Path, kind: str) -> Path:
    """`tokenizer.json` of that kind in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(KINDS[kind]().to_str(), encoding="utf-8")
    return folder / "tokenizer.json"


def _special(*tokens: str) -> dict:
    return {"special_tokens": list(tokens), "show_progress": False}


def _trained(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(training_lines(), trainer)
    return tokenizer


def _without_special(tokenizer: Tokenizer, beginning: str) -> Tokenizer:
    rules = json.loads(tokenizer.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if not token["content"].startswith(beginning)]
    return Tokenizer.from_str(json.dumps(rules))
