"""Opening a tokenizer, whichever kind of file it is."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from model.errors import UserError
from model.hf.kept import JSON, MODEL
from pretrain.data.tokenizer.base import Tokenizer
from pretrain.data.tokenizer.json_file import BESIDE, JsonTokenizer
from pretrain.data.tokenizer.sentence_piece import LARGEST_MODEL, SentencePieceTokenizer
from pretrain.machine.files import read_regular


def open_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer at `path`: a SentencePiece model, a tokenizer.json, or a folder with one of them.

    What the file holds decides, not its name. A folder with both gives the SentencePiece model where the two have the
    same tokens, and else the tokenizer.json, to which tokens may have been added since. UserError where there is no
    tokenizer.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        content = read_regular(path, LARGEST_MODEL)
        if path.suffix == ".json" or content.lstrip()[:1] == b"{":
            return JsonTokenizer(path, content, _beside(path))
        return SentencePieceTokenizer(path, content)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL in a path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: the tokenizer cannot be read ({reason}); give the path of a SentencePiece .model or a "
            "tokenizer.json on this machine, or of a folder with one"
        ) from error


def kept_tokenizer(folder: Path, kept: Mapping[str, bytes]) -> Tokenizer | None:
    """The tokenizer that `folder` keeps, of whose files `kept` has the contents by name; None where it keeps none."""
    if MODEL in kept:
        return SentencePieceTokenizer(folder / MODEL, kept[MODEL])
    return JsonTokenizer(folder / JSON, kept[JSON], kept) if JSON in kept else None


def _open_folder(folder: Path) -> Tokenizer:
    found = [folder / name for name in (MODEL, JSON) if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: no {MODEL} and no {JSON} there; give a folder or a file with a tokenizer")
    if len(found) == 1:
        return open_tokenizer(found[0])
    first, second = open_tokenizer(found[0]), open_tokenizer(found[1])
    return first if _tokens(first) == _tokens(second) else second


def _tokens(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]


def _beside(path: Path) -> dict[str, bytes]:
    files = [path.with_name(name) for name in BESIDE]
    return {file.name: read_regular(file, LARGEST_MODEL) for file in files if file.is_file()}
