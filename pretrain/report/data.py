"""What a run was trained on, and whether two runs can be compared."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from pretrain.machine.files import read_json, read_regular

if TYPE_CHECKING:
    from pretrain.config.schema import Config
    from pretrain.data.manifest import Manifest


@dataclass(frozen=True)
class Data:
    """A run's corpus as its folder tells; None for what it does not."""

    fingerprint: str | None = None
    """One hash of text, split and tokenizer together."""
    manifest: "Manifest | None" = None
    """The corpus's own, where it is still at data.path and unchanged."""

    @property
    def bytes_per_token(self) -> float | None:
        if self.manifest is None or self.manifest.train.bytes is None:
            return None
        return self.manifest.train.bytes / self.manifest.train.tokens

    def unlike(self, other: "Data") -> bool:
        """Whether both are known and differ: then a nat per token of one is not a nat per token of the other."""
        known = self.fingerprint is not None and other.fingerprint is not None
        return known and self.fingerprint != other.fingerprint

    def comparable(self, other: "Data") -> bool:
        """Whether both tell of their data, or neither does; where one alone does nobody knows if they are alike."""
        return (self.fingerprint is None) == (other.fingerprint is None)

    def same_held_out_text(self, other: "Data") -> bool:
        """Whether both are known to hold out the same text, though other tokens: the same source, split alike."""
        if self.manifest is None or other.manifest is None:
            return False
        one, two = self.manifest, other.manifest
        sizes = (one.val.documents, one.val.bytes) == (two.val.documents, two.val.bytes)
        return sizes and one.source == two.source and one.options.get("val_fraction") == two.options.get("val_fraction")


def data_of(table: dict[str, Any], checkpoints: list[Path]) -> Data:
    """What the newest readable one of `checkpoints`, newest first, says; without one, what `table`, [data], names."""
    recorded = (read_json(folder / "manifest.json").get("data_fingerprint") for folder in checkpoints)
    found = next((fingerprint for fingerprint in recorded if isinstance(fingerprint, str)), None)
    manifest, own = _corpus(table)
    if found is None:
        return Data(own, manifest)
    return Data(found, manifest if own == found else None)


def recorded_settings(run: Path) -> dict[str, Any]:
    """`resolved.toml` of a run as its tables, of whatever version; empty where it is missing or damaged."""
    try:
        return tomllib.loads(read_regular(run / "resolved.toml").decode())
    except (OSError, ValueError, RecursionError):
        return {}


def run_config(run: Path) -> "Config | None":
    """`resolved.toml` of a run; None where it is missing or of another version."""
    from pretrain.config import load_recorded  # and with it torch, for which a report of a whole run does not wait

    path = run / "resolved.toml"
    try:
        return load_recorded(path) if path.is_file() else None
    except UserError:
        return None


def _corpus(table: dict[str, Any]) -> "tuple[Manifest | None, str | None]":
    from pretrain.data.manifest import fingerprint, fingerprint_of, read_manifest

    mixture = table.get("mixture")
    try:
        if mixture:  # it has no manifest of its own
            return None, fingerprint_of({name: fingerprint(source["path"]) for name, source in mixture.items()})
        return read_manifest(table["path"]), fingerprint(table["path"])
    except (UserError, OSError, KeyError, TypeError, AttributeError):  # a table of another version
        return None, None
