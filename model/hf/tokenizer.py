"""The tokenizer files of a Hugging Face LLaMA folder, from a SentencePiece model or a tokenizer.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import UserError
from model.hf.kept import CONFIG, JSON, MODEL
from model.hf.markers import ROLES, Marker, find_markers, template
from model.hf.tokenizer_json import bos_first, obstacle, tokenizer_json
from model.strict_json import parse_object


class FolderTokenizer(NamedTuple):
    """The tokenizer's part of a folder."""

    files: dict[str, bytes]
    """Contents by name; empty where there is no tokenizer."""
    ids: dict[str, int | None]
    """bos_token_id and so on, as config.json and generation_config.json say them."""


def folder_tokenizer(kept: Mapping[str, bytes], place: Path, max_seq_len: int) -> FolderTokenizer:
    """What to write of a tokenizer of which `kept` has the files, by name, that a checkpoint keeps.

    A tokenizer.json goes out as it is, but for what would make transformers, which follows that file alone, treat a
    text unlike training: truncation, padding, and a post-processor that puts anything else around it than bos before
    it. From a SentencePiece model one is written. `place` is where the files are, for sentences; UserError where a
    Hugging Face folder cannot hold the tokenizer.
    """
    files: dict[str, bytes] = {}
    special: dict[str, tuple[int, str] | None] = {}
    if MODEL in kept:
        facts = _facts(kept[MODEL], place / MODEL)
        files = {MODEL: kept[MODEL], JSON: json_bytes(facts.tokenizer_json)}
        files[CONFIG], special = json_bytes(tokenizer_config(facts, max_seq_len)), facts.special
    elif JSON in kept:
        rules = parse_object(kept[JSON])
        found = find_markers(rules, [(CONFIG, parse_object(kept[CONFIG]))] if CONFIG in kept else [])
        special = {f"{role}_token": (found[role].id, found[role].token) if role in found else None for role in ROLES}
        files = {
            JSON: _as_in_training(kept[JSON], rules, found.get("bos")),
            CONFIG: json_bytes(_class_that_reads_json(special, max_seq_len)),
        }
    if not files:
        return FolderTokenizer({}, {})
    files["special_tokens_map.json"] = json_bytes(_spelt(special))
    ids = {f"{role}_id": token and token[0] for role, token in special.items() if role in ("bos_token", "eos_token")}
    return FolderTokenizer(files, ids | ({"pad_token_id": pad[0]} if (pad := special["pad_token"]) else {}))


def _as_in_training(content: bytes, rules: dict[str, Any], bos: Marker | None) -> bytes:
    changes: dict[str, Any] = {key: None for key in ("truncation", "padding") if rules.get(key)}
    if template(rules.get("post_processor")) != ([bos.token] if bos else [], []):
        changes["post_processor"] = bos_first(bos.id, bos.token) if bos else None
    return json_bytes(rules | changes) if changes else content


def read_kept(path: Path) -> dict[str, bytes]:
    """What a checkpoint would keep of a tokenizer's file: a SentencePiece model, or a tokenizer.json and its CONFIG."""
    content = path.read_bytes()
    if content.lstrip()[:1] != b"{":
        return {MODEL: content}
    beside = path.with_name(CONFIG)
    return {JSON: content} | ({CONFIG: beside.read_bytes()} if beside.is_file() else {})


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
    return _facts(path.read_bytes(), path)


def _facts(model: bytes, path: Path) -> TokenizerFacts:
    proto = _parse(model, path)
    if reason := obstacle(proto):
        raise UserError(f"{path}: cannot be exported, since {reason}; train with another tokenizer")
    trainer = proto.trainer_spec
    ids = {role: getattr(trainer, f"{role}_id") for role in ("bos", "eos", "unk", "pad")}
    special = {f"{role}_token": None if i < 0 else (i, proto.pieces[i].piece) for role, i in ids.items()}
    return TokenizerFacts(special, proto.normalizer_spec.add_dummy_prefix, tokenizer_json(proto))


def export_obstacle(path: Path) -> str | None:
    """What keeps the SentencePiece model at `path` out of a Hugging Face folder, or None."""
    return obstacle(_parse(path.read_bytes(), path))


def _parse(model: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(model)
    except DecodeError:
        raise UserError(f"{path}: not a SentencePiece model; give a .model file") from None
    return proto


def _class_that_reads_json(special: Mapping[str, tuple[int, str] | None], max_seq_len: int) -> dict[str, Any]:
    """The content of a tokenizer_config.json that lets tokenizer.json, and nothing else, decide."""
    return {
        # This class takes tokenizer.json as it is; LlamaTokenizer would build its own from the pieces.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # A marker spelt out in a text is ordinary characters, as in training.
        "split_special_tokens": True,
        "add_bos_token": special["bos_token"] is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
        # Up to transformers 4, that class adds token_type_ids, which a LLaMA's generate refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        # A null says that there is none; left out, transformers would add its default as a new token.
        **{role: token and token[1] for role, token in special.items()},
    }


def tokenizer_config(facts: TokenizerFacts, max_seq_len: int) -> dict[str, Any]:
    """The content of tokenizer_config.json beside a SentencePiece model."""
    # A missing or wrong add_prefix_space changes the ids of almost every text.
    own = {"legacy": False, "add_prefix_space": facts.add_dummy_prefix}
    return _class_that_reads_json(facts.special, max_seq_len) | own


def special_tokens_map(facts: TokenizerFacts) -> dict[str, str]:
    """The content of special_tokens_map.json."""
    return _spelt(facts.special)


def _spelt(special: Mapping[str, tuple[int, str] | None]) -> dict[str, str]:
    return {role: token[1] for role, token in special.items() if token}


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as all files of a folder have it."""
    return (json.dumps(content, indent=2) + "\n").encode()
