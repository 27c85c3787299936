"""Files that a corpus or a checkpoint keeps of its tokenizer, by name."""

MODEL = "tokenizer.model"
"""A SentencePiece model."""
JSON = "tokenizer.json"
"""The tokenizers library's own file."""
CONFIG = "tokenizer_config.json"
"""Beside JSON: which of its tokens are bos, eos, pad and unk."""
KEPT = (MODEL, JSON, CONFIG)
