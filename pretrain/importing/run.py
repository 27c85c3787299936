"""`sparlow import`: reads a Hugging Face folder, weight by weight, and commits it as the checkpoint of step 0."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.hf.load import Folder
from model.hf.staging import staged, writing
from model.linear.from_dense import Approximation, Support
from pretrain.checkpoint.manifest import BrokenCheckpoint
from pretrain.checkpoint.read import Checkpoint
from pretrain.config.schema import Config
from pretrain.importing.commit import write_checkpoint
from pretrain.importing.linears import Conversion
from pretrain.importing.ranks import with_ranks
from pretrain.importing.tables import FILE, recorded_config, user_file
from pretrain.importing.tokenizer import read_tokenizer
from pretrain.importing.weights import checkpoint_tensors

MARK = "import.json"
"""The file by which a folder is known as an import, and that says where it comes from."""


@dataclass(frozen=True)
class Imported:
    """What `import_folder` has made."""

    out: str
    config: Config
    bytes: int
    """Size of the checkpoint's files."""
    tokenizer: str | None
    """Name of the file with the vocabulary, where there is one."""
    approximations: dict[str, Approximation]
    """By name of the linear here, how well factors and sparse entries give its dense weight; empty for dense ones."""
    notes: tuple[str, ...]
    """What had to be decided, in sentences."""


def import_folder(
    source: str,
    out: str,
    *,
    linear: Mapping[str, Any],
    reduction: float | None = None,
    support: Support = "random",
    seed: int = 0,
    tokenizer: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Imported:
    """Make the checkpoint in `out`, a new run folder; `linear` are the keys of its [linear].

    With `reduction`, each matrix gets a rank of its own: WeLore's, which leave out that part of all singular values.
    `say` is told of every matrix that is done. The folder appears complete or not at all; UserError, with nothing
    written, for a source that cannot be taken.
    """
    require_folder(source)
    _require_no_run(Path(out))
    model = Folder(Path(source))
    if reduction is not None:
        linear = with_ranks(model, linear, reduction, say)
    config = recorded_config(model, dict(linear), seed, Path(out))
    opened, notes = read_tokenizer(Path(source), tokenizer, model.config.vocab_size)
    conversion = Conversion(config.linear, support, seed, model.config.init_std, lambda *found: say(row(*found)))
    if config.linear.name != "dense":
        say(HEADER)
    with writing(out), staged(Path(out), overwrite=overwrite, mark=MARK, kind="an imported model") as folder:
        step = write_checkpoint(folder / "checkpoints", config, opened, checkpoint_tensors(model, conversion))
        try:
            checkpoint = Checkpoint(step)  # names, shapes and types of what was written
        except BrokenCheckpoint as reason:
            raise UserError(f"{out}: the disk did not keep what was written ({reason}); import again") from None
        (folder / FILE).write_text(user_file(config, out), encoding="utf-8")
        size = sum(entry.bytes for entry in checkpoint.manifest.files)
        done = Imported(
            out, config, size, opened.file_name if opened else None, conversion.made, (*model.notes, *notes)
        )
        (folder / MARK).write_text(json.dumps(record(done, source), indent=1) + "\n", encoding="utf-8")
    return done


HEADER = f"{'matrix':40} {'rank':>5} {'entries':>10} {'error':>8} {'without':>8}"
"""Above the rows of matrices: the last two are relative errors, of all and of the factors alone."""


def row(name: str, found: Approximation) -> str:
    """One matrix in the table below HEADER."""
    return f"{name:40} {found.rank:5} {found.entries:10,} {found.error:8.4f} {found.low_rank_error:8.4f}"


def record(done: Imported, source: str) -> dict[str, Any]:
    """What import.json and --json say."""
    return {
        "out": done.out,
        "source": source,
        "bytes": done.bytes,
        "model": done.config.model.model_dump(),
        "linear": done.config.linear.model_dump(),
        "tokenizer": done.tokenizer,
        "notes": list(done.notes),
        "matrices": {name: vars(found) for name, found in done.approximations.items()},
    }


def require_folder(source: str) -> None:
    """UserError unless `source` is a folder; a name as the Hugging Face hub has them gets the command that fetches."""
    if Path(source).is_dir():
        return
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists():
        folder = source.rpartition("/")[2]
        raise UserError(
            f"{source}: no such folder; nothing is downloaded here: fetch it with `hf download {source} --local-dir "
            f"{folder}` and give {folder}"
        )
    raise UserError(f"{source}: no such folder; give a Hugging Face folder, with config.json and safetensors in it")


def _require_no_run(out: Path) -> None:
    """UserError where a run has trained on in the folder of an import."""
    steps = sorted(path.name for path in out.glob("checkpoints/step-*"))
    if any(name != "step-00000000" for name in steps):
        raise UserError(f"{out}: holds the checkpoint {steps[-1]} of a run, so it is not replaced; choose another")
