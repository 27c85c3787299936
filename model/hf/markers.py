"""Which tokens of a tokenizer.json begin and end a document, which no part of that file says by name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

BEGIN, END = ("<s>", "<|begin_of_text|>"), ("</s>", "<|end_of_text|>", "<|endoftext|>")
"""Names that such tokens have in well-known tokenizers, the first one there being taken."""
ROLES = ("bos", "eos", "pad", "unk")


class Marker(NamedTuple):
    """A token with a role."""

    token: str
    id: int
    why: str
    """Where the choice comes from, in words."""


def vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    """The id of every token in the content of a tokenizer.json, added ones included; empty where it has none."""
    model = content.get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, dict):
        ids = dict(entries)
    else:  # Unigram: pairs of piece and score
        ids = {entry[0]: i for i, entry in enumerate(entries or [])}
    return ids | {token["content"]: token["id"] for token in content.get("added_tokens") or []}


def find_markers(content: Mapping[str, Any], beside: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Marker]:
    """Markers by role ("bos", "eos", "pad", "unk"), where there is one.

    `content` is that of tokenizer.json; `beside` has the names and contents of the files next to it that name markers,
    the first one that speaks of a role being heard (a null there says that there is none). Where none does, the
    post-processor's template tells what it puts before and after a text, and else a token of a well-known name is
    taken. One token in both places, as in GPT-2, separates documents: it ends each and begins none.

    ValueError, in words, where a file names a token that the vocabulary does not have.
    """
    ids = vocabulary(content)
    model, found = content.get("model") or {}, dict[str, Marker]()
    before, after = template(content.get("post_processor"))
    names: dict[str, tuple[str, ...]] = {"bos": BEGIN, "eos": END}
    around: dict[str, list[str | None]] = {"bos": [*before[-1:]], "eos": [*after[:1]], "unk": [_unknown(model)]}
    for role in ROLES:
        spoken = [(_token(said[f"{role}_token"]), f"of {file}") for file, said in beside if f"{role}_token" in said]
        where = "of the model" if role == "unk" else "of the post-processor's template"
        guessed = [(token, where) for token in around.get(role, []) if token in ids]
        guessed += [(token, "by its name") for token in names.get(role, ()) if token in ids]
        token, why = (spoken or guessed or [(None, "")])[0]
        if token is None:
            continue
        if token not in ids:
            raise ValueError(f"{role}_token {token!r} {why} is not in its vocabulary")
        found[role] = Marker(token, ids[token], why)
    if "bos" in found and "eos" in found and found["bos"].id == found["eos"].id:
        del found["bos"]
    return found


def _token(value: object) -> str | None:
    """A token as tokenizer_config.json writes it: a string, an object with one, or null."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _unknown(model: Mapping[str, Any]) -> str | None:
    entries, index = model.get("vocab"), model.get("unk_id")
    if isinstance(entries, list) and isinstance(index, int) and 0 <= index < len(entries):
        return str(entries[index][0])
    token = model.get("unk_token")
    return token if isinstance(token, str) else None


def template(processor: object) -> tuple[list[str], list[str]]:
    """Tokens that a post-processor puts before a text and after it."""
    if not isinstance(processor, Mapping):
        return [], []
    kind = processor.get("type")
    if kind == "Sequence":
        parts = [template(part) for part in processor.get("processors", [])]
        return next((part for part in parts if part != ([], [])), ([], []))
    if kind in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][0]], [processor["sep"][0]]
    if kind != "TemplateProcessing":
        return [], []
    pieces, tokens = processor["single"], processor["special_tokens"]
    text = next((i for i, piece in enumerate(pieces) if "Sequence" in piece), len(pieces))
    sides = [
        [piece["SpecialToken"]["id"] for piece in side if "SpecialToken" in piece]
        for side in (pieces[:text], pieces[text:])
    ]
    before, after = ([token for name in side for token in tokens[name]["tokens"]] for side in sides)
    return before, after
