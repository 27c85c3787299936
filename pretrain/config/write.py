"""A `Config` as TOML, with or without each key's documentation."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pretrain.config.literals import as_toml
from pretrain.config.schema import Config
from pretrain.config.tables import is_table

# A resume may change these; everything else decides what the run computes. (run.seed does, so it is not among them.)
CHANGEABLE = (
    *("run.dir", "train.max_steps", "train.expandable_segments", "train.profile", "data.path", "data.mixture"),
    "parallel.offload",
    *("parallel.timeout_minutes", "optimizer.accumulators", "train.offload_activations"),
    # What the guard makes of bad steps is for whoever watches the run to say, most of all when it has given up.
    *("checkpoint", "eval", "metrics", "guard"),
)


def to_toml(config: Config, comments: bool = False) -> str:
    """All tables and the keys that have an effect; `load_config` reads the text back to an equal `Config`."""
    blocks = []
    for section in Config.model_fields:
        table = getattr(config, section)
        lines, after = [f"[{section}]"], list[str]()
        for key, field in type(table).model_fields.items():
            if key in table.ignored or (table is config.data and key == "path" and config.data.mixture):
                continue
            value = getattr(table, key)
            comment = [f"# {line}" for line in (field.description or "").splitlines()] if comments else []
            if not is_table(field):
                lines += [*comment, f"{key} = {as_toml(value)}"]
            elif not value:
                lines += [*comment, f"{key} = {{}}"]
            else:  # TOML has the tables of a table after its other keys
                after += ["", *comment, *table_lines(f"{section}.{key}", value)]
        blocks.append("\n".join(lines + after))
    return "\n\n".join(blocks) + "\n"


def table_lines(name: str, pairs: Iterable[tuple[str, int]]) -> list[str]:
    """A table of names and numbers as the lines of TOML."""
    return [f"[{name}]", *(f"{as_toml(key)} = {number}" for key, number in pairs)]


def fixed_keys(config: Config) -> dict[str, Any]:
    """The keys that a resume must not change, as dotted names."""
    fixed = {
        f"{section}.{key}": value
        for section, table in config.model_dump().items()
        for key, value in table.items()
        if section not in CHANGEABLE and f"{section}.{key}" not in CHANGEABLE
    }
    weights = {f"data.mixture.{name}.weight": source.weight for name, source in config.data.mixture.items()}
    return fixed | weights  # of a mixture, since its corpora may lie elsewhere by now


def config_hash(config: Config) -> str:
    """sha256 over `fixed_keys`."""
    return hashlib.sha256(json.dumps(fixed_keys(config), sort_keys=True).encode()).hexdigest()
