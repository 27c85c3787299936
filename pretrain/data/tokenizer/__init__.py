"""Tokenizers of any usual kind: SentencePiece models and `tokenizer.json` files. Start at `base.py`."""

from pretrain.data.tokenizer.base import Tokenizer
from pretrain.data.tokenizer.opening import kept_tokenizer, open_tokenizer
from pretrain.data.tokenizer.sentence_piece import SentencePieceTokenizer
from pretrain.data.tokenizer.training import train_tokenizer

__all__ = ["SentencePieceTokenizer", "Tokenizer", "kept_tokenizer", "open_tokenizer", "train_tokenizer"]
