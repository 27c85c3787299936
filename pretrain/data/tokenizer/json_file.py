"""`tokenizer.json`, the file of the tokenizers library: GPT-2's, Llama 3's, or one trained with that library."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import UserError
from model.hf.kept import CONFIG, JSON
from model.hf.markers import ROLES, find_markers, vocabulary
from model.strict_json import parse_object
from pretrain.data.tokenizer.base import SPACE, Tokenizer

if TYPE_CHECKING:
    import tokenizers

BESIDE = (CONFIG, "special_tokens_map.json")
"""Files next to a tokenizer.json that name its markers, the first one that speaks of a role being heard."""


class JsonTokenizer(Tokenizer):
    """A tokenizer.json, read by the tokenizers library itself.

    `content` is that of the file, `beside` those of the files of BESIDE that lie next to it, by name. Truncation and
    padding that the file asks for, which are for batches of a fixed length, are left out. Raises UserError where it
    cannot be read, has an id without a token, or draws the ids of a text by lot.
    """

    file_name, library = JSON, "tokenizers"

    def __init__(self, path: Path, content: bytes, beside: Mapping[str, bytes]):
        self.path = path
        rules, self._tokenizer = _load(path, content)
        self.vocab_size = _usable_size(path, rules, self._tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # markers in a text are ordinary characters
        try:
            markers = find_markers(rules, [(name, parse_object(beside[name])) for name in BESIDE if name in beside])
            self._spelling = _Spelling(rules)
        except ValueError as error:
            raise UserError(f"{path}: {error}; correct {' or '.join(BESIDE)} beside it") from None
        except (LookupError, TypeError, AttributeError):  # what the library reads in another way than this code
            raise UserError(f"{path}: a tokenizer.json of an unknown layout; save it anew with tokenizers") from None
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = (
            markers[role].id if role in markers else None for role in ROLES
        )
        chosen = {f"{role}_token": markers[role].token if role in markers else None for role in ROLES}
        self.kept = {JSON: content, CONFIG: (json.dumps(chosen, indent=2) + "\n").encode()}
        self.notes = tuple(
            f"{path}: a document {what} {markers[role].token!r}, {markers[role].why}"
            if role in markers
            else f"{path}: no token {what.removesuffix(' with')} a document"
            for role, what in (("bos", "begins with"), ("eos", "ends with"))
        )
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._added = {i: token.content for i, token in added.items() if not token.special}
        self._tokens = {i: token for token, i in self._tokenizer.get_vocab().items()}

    def encode(self, text: str) -> list[int]:
        with self._encoding():
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        # The library's own threads are as many as RAYON_NUM_THREADS says, or the machine has.
        with self._encoding():
            return [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids])

    def token_bytes(self) -> np.ndarray:
        return np.array([self._bytes_of(i) for i in range(self.vocab_size)], dtype=np.int32)

    def pieces(self, text: str) -> list[str]:
        return [self.piece(i) for i in self.encode(text)]

    def piece(self, i: int) -> str:
        return self._spelling.spaced(self._tokens[i])

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        """Say in a sentence that a text cannot be encoded, as one with an unknown letter where there is no unk."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # as in _load
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path}: a text cannot be encoded ({reason}); give another tokenizer") from None

    def _bytes_of(self, i: int) -> int:
        if i in self._special or i == self.unk_id:
            return 0
        if i in self._added:
            return len(self._added[i].encode())
        return self._spelling.size(self._tokens[i])


class _Spelling:
    """How the tokens of a tokenizer.json write text."""

    def __init__(self, rules: Mapping[str, Any]):
        steps = [*_steps(rules.get("pre_tokenizer")), *_steps(rules.get("decoder"))]
        kinds, model = {step.get("type") for step in steps}, rules["model"]
        self._bytes = _byte_letters() if "ByteLevel" in kinds else None
        self._letters = frozenset(self._bytes or ())
        self._space = next((step["replacement"] for step in steps if step.get("type") == "Metaspace"), SPACE)
        self._byte_fallback = bool(model.get("byte_fallback"))
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._suffix = model.get("end_of_word_suffix") or ""

    def spaced(self, token: str) -> str:
        """The token with SPACE for a space."""
        if self._bytes is not None:
            return token.replace(self._bytes[32], SPACE)
        return token.replace(self._space, SPACE)

    def size(self, token: str) -> int:
        """UTF-8 bytes of the text that it spells, but for those that a normaliser took or a decoder adds."""
        if self._bytes is not None and self._letters.issuperset(token):
            return len(token)
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x"):
            return 1
        text = token.removeprefix(self._prefix).removesuffix(self._suffix).replace(self._space, " ")
        return len(text.encode())


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level tokens: GPT-2's table (Radford et al., 2019)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _steps(part: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer or decoder, as a list of what it does one after the other."""
    if not isinstance(part, dict):
        return []
    inner = part.get("pretokenizers", part.get("decoders"))
    return [part] if inner is None else [step for each in inner for step in _steps(each)]


def _load(path: Path, content: bytes) -> tuple[dict[str, Any], "tokenizers.Tokenizer"]:
    try:
        import tokenizers  # where there is none, SentencePiece works all the same
    except ImportError:
        raise UserError(
            f"{path}: a tokenizer.json needs a library to be read: pip install tokenizers -c constraints.txt"
        ) from None
    try:
        return parse_object(content), tokenizers.Tokenizer.from_str(content.decode())
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises bare Exception, and for some files a panic
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a tokenizer.json that tokenizers {tokenizers.__version__} can read ({reason}); give that of "
            "a model, or a SentencePiece .model"
        ) from None


def _usable_size(path: Path, rules: Mapping[str, Any], tokenizer: "tokenizers.Tokenizer") -> int:
    """The number of ids; UserError where they have a hole, or the file is not to be trained with."""
    ids = tokenizer.get_vocab()
    known = set(ids.values())
    if not known:
        raise UserError(f"{path}: its vocabulary is empty; give the tokenizer.json of a model")
    hole = next((i for i in range(1 + max(known)) if i not in known), None)
    if hole is not None:
        raise UserError(
            f"{path}: no token has the id {hole}, though ids go up to {max(known)}; give a tokenizer.json whose ids "
            "have no hole"
        )
    if rules["model"].get("dropout"):
        raise UserError(
            f"{path}: its model.dropout of {rules['model']['dropout']} gives a text other ids each time; set it to null"
        )
    if ids != vocabulary(rules):  # the library gives an added token another id where its own is not free
        raise UserError(f"{path}: its added_tokens have other ids than the file says; give one that agrees with itself")
    return len(known)
