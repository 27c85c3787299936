"""The data that a configuration names, opened; and what stands for it in a checkpoint."""

import contextlib
import hashlib
from pathlib import Path
from typing import Literal

from model.errors import UserError
from pretrain.config.schema import Config
from pretrain.config.tables import DataConfig
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import MANIFEST, read_manifest
from pretrain.data.mixture import MixtureDataset, fingerprint_of
from pretrain.machine.files import read_regular

Dataset = TokenDataset | MixtureDataset


def open_dataset(config: Config, split: Literal["train", "val"], path: str | None = None) -> Dataset:
    """One split of `config`'s corpus or mixture, or of the corpus at `path`; UserError where it cannot be used."""
    data, seq_len, seed = config.data, config.train.seq_len, config.run.seed
    if path is not None or not data.mixture:
        return TokenDataset(path or data.path, split, seq_len, data.packing, seed)
    paths = {name: source.path for name, source in data.mixture.items()}
    weights = {name: source.weight for name, source in data.mixture.items()}
    return MixtureDataset(paths, weights, split, seq_len, data.packing, seed)


def fingerprint(data: DataConfig) -> str:
    """The `fingerprint` of `data`'s dataset without opening it; OSError where a manifest is not there."""
    if not data.mixture:
        return _of_folder(data.path)
    return fingerprint_of({name: _of_folder(source.path) for name, source in data.mixture.items()})


def _of_folder(path: str) -> str:
    return hashlib.sha256(read_regular(Path(path) / MANIFEST)).hexdigest()


def planned(config: Config, tokens: int) -> dict[str, dict[str, float | None]]:
    """Share, tokens and epochs of each corpus of a mixture in a run of so many tokens; {} without one.

    Epochs are None where the corpus is not there yet. Nothing but its manifest is read.
    """
    found: dict[str, dict[str, float | None]] = {}
    total = sum(source.weight for source in config.data.mixture.values())
    for name, source in config.data.mixture.items():
        share, epochs = source.weight / total, None
        with contextlib.suppress(UserError):
            epochs = share * tokens / read_manifest(source.path).train.tokens
        found[name] = {"share": share, "tokens": round(share * tokens), "epochs": epochs}
    return found
