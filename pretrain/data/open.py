"""The data that a configuration names, opened; and what stands for it in a checkpoint."""

import contextlib
from typing import Literal

from model.errors import UserError
from pretrain.config.schema import Config
from pretrain.data.dataset import TokenDataset
from pretrain.data.manifest import read_manifest
from pretrain.data.mixture import MixtureDataset

Dataset = TokenDataset | MixtureDataset


def open_dataset(config: Config, split: Literal["train", "val"], path: str | None = None) -> Dataset:
    """One split of `config`'s corpus or mixture, or of the corpus at `path`; UserError where it cannot be used."""
    data, seq_len, seed = config.data, config.train.seq_len, config.run.seed
    if path is not None or not data.mixture:
        return TokenDataset(path or data.path, split, seq_len, data.packing, seed)
    paths = {name: source.path for name, source in data.mixture.items()}
    weights = {name: source.weight for name, source in data.mixture.items()}
    return MixtureDataset(paths, weights, split, seq_len, data.packing, seed)


def require_vocabulary(dataset: Dataset, config: Config) -> None:
    """UserError where the model has no row for some piece of the tokenizer."""
    if dataset.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the tokenizer of {config.data.named}, "
            f"which has {dataset.vocab_size} pieces; set it to {dataset.vocab_size}"
        )


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
