"""Training a SentencePiece tokenizer on a sample of the corpus."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from model.errors import RunFailed, UserError
from pretrain.machine.child import in_child
from pretrain.machine.fault import fault_point

SENTENCE_CHARACTERS = 4096
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "character_coverage": 0.9995,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "max_sentence_length": 4 * SENTENCE_CHARACTERS,  # bytes
    "num_threads": 4,  # part of the model file: a constant, so that every machine writes the same bytes
    "minloglevel": 2,
}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a BPE model with byte fallback: any text comes back from its ids unchanged, save U+2581, which is a space.

    The texts go in as blocks of lines rather than line by line, because SentencePiece drops the end of each
    "sentence": only inside a block does it see newlines, and it learns pieces such as a colon with its newline.
    """
    sentences = list(_sentences(texts))

    def train() -> bytes:
        model = io.BytesIO()
        fault_point("prepare_tokenizer")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **SETTINGS
        )
        return model.getvalue()

    try:
        # The trainer's C++ loop lets no signal handler run for minutes; in a process of its own it can be killed.
        return in_child("training the tokenizer", train)
    except RunFailed:
        raise
    except RuntimeError as error:
        raise _vocabulary_error(str(error), vocab_size) from error


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Blocks of whole lines of at most SENTENCE_CHARACTERS; a longer line is cut."""
    for text in texts:
        start = 0
        while start < len(text):
            stop = start + SENTENCE_CHARACTERS
            if stop < len(text):
                stop = text.rfind("\n", start, stop) + 1 or stop
            yield text[start:stop]
            start = stop


def _vocabulary_error(message: str, vocab_size: int) -> UserError:
    if found := re.search(r"value <= (\d+)", message):
        return UserError(f"--vocab-size {vocab_size}: too large for this text; the largest possible is {found[1]}")
    if found := re.search(r"required_chars\. \d+ vs\.? (\d+)", message):
        return UserError(f"--vocab-size {vocab_size}: too small for this text; the smallest possible is {found[1]}")
    return UserError(f"--vocab-size {vocab_size}: SentencePiece cannot train on this text ({message}); give more text")
