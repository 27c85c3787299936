"""`tokenizer.json`: the rules of a SentencePiece BPE model in the tokenizers library's own words.

Without it transformers 5 takes the pieces from tokenizer.model but not the normaliser, and gives other ids.
"""

from typing import Any

from model.hf.charsmap import charsmap_obstacle, charsmap_steps, replacement

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Types of a piece in SentencePiece's file format."""

SPACE = "\u2581"

LONGEST = 10**9
"""Sum of the squared lengths of all pieces: so many characters are copied to find what each is merged from."""


def obstacle(proto: Any) -> str | None:
    """What in the SentencePiece model no tokenizer.json expresses; None when all of it can be written."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    symbols = [entry.piece for entry in proto.pieces if entry.type == USER_DEFINED]
    ids = [getattr(trainer, f"{role}_id") for role in ("bos", "eos", "pad", "unk")]
    if trainer.unk_id < 0 or max(ids) >= len(proto.pieces):
        return "its special tokens are none of its pieces"
    if sum(len(entry.piece) ** 2 for entry in proto.pieces) > LONGEST:
        return "its pieces are longer than those of any language"
    if trainer.model_type != trainer.BPE:
        return "it is not a BPE tokenizer, and a Hugging Face LLaMA folder can hold no other"
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        return "it marks spaces in a way that no tokenizer.json expresses"
    if any(entry.type == UNUSED for entry in proto.pieces):
        return "it has unused pieces, which no tokenizer.json expresses"
    for symbol in symbols:
        if " " in symbol or SPACE in symbol:
            return f"its user-defined symbol {symbol.replace(SPACE, ' ')!r} contains a space"
    # An added token cuts the text, and the library normalises each part as if it were a text of its own.
    if symbols and (normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces):
        rule = "add_dummy_prefix" if normalizer.add_dummy_prefix else "remove_extra_whitespaces"
        return f"it has user-defined symbols such as {symbols[0]!r} beside {rule}"
    if normalizer.precompiled_charsmap and (reason := charsmap_obstacle(normalizer.precompiled_charsmap)):
        return f"no tokenizer.json expresses its normaliser {normalizer.name!r}: {reason}"
    return None


def tokenizer_json(proto: Any) -> dict[str, Any]:
    """The content of tokenizer.json for a model without an `obstacle`."""
    trainer, bos = proto.trainer_spec, proto.trainer_spec.bos_id
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto),
        "normalizer": _normalizer(proto.normalizer_spec),
        "pre_tokenizer": None,
        "post_processor": None if bos < 0 else bos_first(bos, proto.pieces[bos].piece),
        "decoder": _decoder(proto.normalizer_spec),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": proto.pieces[trainer.unk_id].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": trainer.byte_fallback,
            "ignore_merges": False,
            "vocab": {entry.piece: i for i, entry in enumerate(proto.pieces)},
            "merges": _merges(proto),
        },
    }


def _merges(proto: Any) -> list[list[str]]:
    """Every pair of pieces that makes a piece, in the order of the made piece's score: the order SentencePiece merges.

    Markers and byte pieces are never made from text.
    """
    scores = {entry.piece: entry.score for entry in proto.pieces if entry.type == NORMAL}
    ids = {entry.piece: i for i, entry in enumerate(proto.pieces)}
    merges: list[list[str]] = []
    for piece in sorted(scores, key=lambda piece: (-scores[piece], ids[piece])):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        found = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        merges += [list(pair) for pair in sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return merges


def _normalizer(spec: Any) -> dict[str, Any]:
    prefix = [{"type": "Prepend", "prepend": SPACE}] if spec.add_dummy_prefix else []
    steps: list[dict[str, Any]] = charsmap_steps(spec.precompiled_charsmap) if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # \A and \z: ^ and $ would match at every line.
        steps += [replacement(pattern, "") for pattern in (r"\A +", rf"[ {SPACE}]+\z")]
        steps += [replacement(" {2,}", " "), *prefix]
    else:  # a text of which the rules leave nothing gets its prefix all the same
        steps = prefix + steps
    steps.append(replacement(" ", SPACE, "String"))
    return {"type": "Sequence", "normalizers": steps}


def _decoder(spec: Any) -> dict[str, Any]:
    steps = [replacement(SPACE, " ", "String"), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def bos_first(bos_id: int, bos: str) -> dict[str, Any]:
    """The post-processor that puts `bos` before a text and nothing after it."""
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _added_tokens(proto: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "content": entry.piece,
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": entry.type != USER_DEFINED,
        }
        for i, entry in enumerate(proto.pieces)
        if entry.type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
