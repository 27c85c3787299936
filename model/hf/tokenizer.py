"""The tokenizer files of a Hugging Face LLaMA folder, from a SentencePiece model."""

from pathlib import Path
from typing import Any, NamedTuple

from model.errors import UserError
from model.hf.tokenizer_json import obstacle, tokenizer_json


class TokenizerFacts(NamedTuple):
    """What the other files of the folder must say about the tokenizer."""

    special: dict[str, tuple[int, str] | None]
    """Id and piece of each special token by its role; None for one that is missing."""
    add_dummy_prefix: bool
    """Whether the model puts a space before the text."""
    tokenizer_json: dict[str, Any]
    """The content of tokenizer.json."""


def read_facts(path: Path) -> TokenizerFacts:
    """Read the SentencePiece model at `path`; UserError when a Hugging Face folder cannot hold it."""
    proto = _parse(path)
    if reason := obstacle(proto):
        raise UserError(f"{path}: cannot be exported, since {reason}; train with another tokenizer")
    trainer = proto.trainer_spec
    ids = {role: getattr(trainer, f"{role}_id") for role in ("bos", "eos", "unk", "pad")}
    special = {f"{role}_token": None if i < 0 else (i, proto.pieces[i].piece) for role, i in ids.items()}
    return TokenizerFacts(special, proto.normalizer_spec.add_dummy_prefix, tokenizer_json(proto))


def export_obstacle(path: Path) -> str | None:
    """What keeps the SentencePiece model at `path` out of a Hugging Face folder, or None."""
    return obstacle(_parse(path))


def _parse(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path}: not a SentencePiece model; give a .model file") from None
    return proto


def tokenizer_config(facts: TokenizerFacts, max_seq_len: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        # This class takes tokenizer.json as it is; LlamaTokenizer would build its own from the pieces.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # A marker spelt out in a text is ordinary characters, as in training.
        "split_special_tokens": True,
        "legacy": False,
        # A missing or wrong value changes the ids of almost every text.
        "add_prefix_space": facts.add_dummy_prefix,
        "add_bos_token": facts.special["bos_token"] is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
        # Up to transformers 4, that class adds token_type_ids, which a LLaMA's generate refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        # A null says that there is none; left out, transformers would add its default as a new token.
        **{role: token and token[1] for role, token in facts.special.items()},
    }


def special_tokens_map(facts: TokenizerFacts) -> dict[str, str]:
    """The content of special_tokens_map.json."""
    return {role: token[1] for role, token in facts.special.items() if token}
