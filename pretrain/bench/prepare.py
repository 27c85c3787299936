"""How much of the bare libraries' rate `prepare` keeps: encoding alone, and the whole command."""

import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from model.errors import UserError
from model.hf.kept import JSON, MODEL
from pretrain.data.documents import SkipLog, Source, readable
from pretrain.data.encode import THREADS, Encoder
from pretrain.data.prepare import PrepareOptions, prepare
from pretrain.data.progress import Progress
from pretrain.data.sources.text import TextSource
from pretrain.data.survey import Division
from pretrain.data.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from pretrain.data.unfinished import Unfinished

TRAINING_BYTES, VOCABULARY = 4_000_000, 8000
AT_ONCE = 1000
"""Documents of one call of encode_batch, as `datasets.map` gives them: all at once would take gigabytes."""
VAL_FRACTION = 0.05


def bench_prepare(
    source: Source, given: list[Path], megabytes: float, turns: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Two rows per tokenizer: MB/s of text of ours and of its library with as many threads, and the median ratio.

    `given` are tokenizers to encode with; without any, a SentencePiece model and a byte-level tokenizer.json of 8,000
    tokens each are trained on the beginning of the text. The documents of `source` are repeated up to `megabytes` and
    read by ours from a file of JSON lines packed with gzip, where the library has them in memory. In every turn each of
    the three runs once.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = _texts(source, megabytes * 1e6)
        size = sum(len(text.encode()) for text in texts)
        _write(folder / "text" / "text.jsonl.gz", texts)
        rows = []
        for path in given or _trained(folder, texts):
            tokenizer = open_tokenizer(path)
            say(f"{tokenizer.library}, {tokenizer.vocab_size:,} tokens, {size / 1e6:.1f} MB, {THREADS} threads")
            rows += _rows(folder, tokenizer, texts, size, turns)
        return rows


def _rows(folder: Path, tokenizer: Tokenizer, texts: list[str], size: int, turns: int) -> list[dict[str, Any]]:
    library = _library(tokenizer, texts)
    contestants = {
        "encoding": lambda: _encode(folder, tokenizer),
        "whole command": lambda: _prepare(folder, tokenizer),
        "library": library,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, work in contestants.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: size / 1e6 / statistics.median(taken) for name, taken in seconds.items()}
    return [
        {
            "name": f"{tokenizer.library}, {name}",
            "ours_mb_per_s": rates[name],
            "library_mb_per_s": rates["library"],
            "kept": statistics.median(
                theirs / ours for ours, theirs in zip(seconds[name], seconds["library"], strict=True)
            ),
        }
        for name in ("encoding", "whole command")
    ]


def _encode(folder: Path, tokenizer: Tokenizer) -> None:
    """What `prepare` does once it has looked at the text: read, encode, write."""
    source = TextSource([str(folder / "text")])
    with tempfile.TemporaryDirectory(dir=folder) as out:
        so_far = Unfinished(
            format="sparlow-unfinished",
            format_version=1,
            made_of={},
            bound=VAL_FRACTION,
            by_position=False,
            total=None,
            kept={},
        )
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        quotas = {"train": float("inf"), "val": float("inf")}
        encoder = Encoder(Path(out), tokenizer, dtype, 100_000_000, quotas, so_far)
        with Progress("encoding") as progress:
            encoder.run(source.records(), Division(VAL_FRACTION, VAL_FRACTION, False), progress)


def _prepare(folder: Path, tokenizer: Tokenizer) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        options = PrepareOptions(out=Path(out) / "out", tokenizer=tokenizer.path, val_fraction=VAL_FRACTION)
        prepare(TextSource([str(folder / "text")]), options, say=lambda line: None)


def _library(tokenizer: Tokenizer, texts: list[str]) -> Callable[[], object]:
    """The library's own call for many texts."""
    if tokenizer.file_name == MODEL:
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.kept[MODEL])
        return lambda: processor.encode(texts, num_threads=THREADS)
    loaded = tokenizers.Tokenizer.from_str(tokenizer.kept[JSON].decode())
    loaded.no_truncation()
    loaded.no_padding()

    def encode() -> None:
        for start in range(0, len(texts), AT_ONCE):
            loaded.encode_batch(texts[start : start + AT_ONCE], add_special_tokens=False)

    return encode


def _texts(source: Source, wanted: float) -> list[str]:
    found = [text.text for text in readable(source.records(), SkipLog())]
    if not found:
        raise UserError("--text: no usable document there; give other text")
    texts, size = list[str](), 0
    for text in cycle(found):
        if size >= wanted:
            return texts
        texts.append(text)
        size += len(text.encode())
    return texts


def _write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir()
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")


def _trained(folder: Path, texts: list[str]) -> list[Path]:
    """A tokenizer of each kind, trained on the beginning of the text."""
    model, rules = folder / MODEL, folder / JSON
    try:
        model.write_bytes(train_tokenizer(_beginning(texts), VOCABULARY))
    except UserError as error:
        raise UserError(
            f"--text: too little to train a tokenizer of {VOCABULARY:,} tokens; give more of it, or --tokenizer FILE"
        ) from error
    byte_level = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator(_beginning(texts), trainer)
    byte_level.save(str(rules))
    return [model, rules]


def _beginning(texts: list[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        yield text
        size += len(text)
        if size >= TRAINING_BYTES:
            return
