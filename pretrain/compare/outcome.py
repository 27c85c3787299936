"""What a run's folder says it came to, and whether it is of the configuration that the suite has now."""

import math
import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

from model.errors import UserError
from pretrain.compare.matrix import Run
from pretrain.config.literals import as_toml
from pretrain.config.tables import Tables, table_type
from pretrain.config.write import to_toml
from pretrain.machine.files import read_json
from pretrain.report.data import recorded_settings

NOTE = "compare.json"
"""What a comparison writes beside a run's own files: by which commit and on what it ran, and why it failed."""

Status = Literal["done", "diverged", "failed"]

FREE = (
    *("run.dir", "checkpoint", "eval", "metrics"),
    *("train.profile", "train.expandable_segments", "parallel.timeout_minutes", "guard.memory"),
)
"""Tables and keys that may change between the runs of a comparison, as none changes what a run comes to."""

GAVE_UP = ("guard.max_consecutive_skips", "guard.max_rewinds")
"""What the error of a run names that has diverged: it would again, as it computes the same."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Status
    reason: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Held-out loss at the end in nats per token; None of a run that did not get there."""
        return self.summary.get("val_loss") if self.status == "done" else None

    @property
    def settled(self) -> bool:
        """Whether running it again would change nothing."""
        return self.status in ("done", "diverged")


def read_outcome(run: Run) -> Outcome | None:
    """What has become of a run; None where it has not ended: then `train` begins it or goes on with it."""
    summary, note = read_json(run.folder / "summary.json"), read_json(run.folder / NOTE)
    error = str(summary.get("error") or "")
    if summary.get("step") == run.steps and not error:
        if _is_finite(summary.get("val_loss")):
            return Outcome("done", "", summary, note)
        if note.get("status") == "ended":  # and not stopped within its last evaluation
            return Outcome("diverged", "it has no finite held-out loss at its last step", summary, note)
    if error and any(key in error for key in GAVE_UP):
        return Outcome("diverged", error, summary, note)
    if note.get("status") == "failed":
        return Outcome("failed", str(note.get("reason", "")), summary, note)
    return None


def _is_finite(loss: object) -> bool:
    return isinstance(loss, int | float) and math.isfinite(loss)


def require_same(run: Run) -> None:
    """UserError, with the keys, where the folder of a run holds one of another configuration, or none can tell."""
    recorded = recorded_settings(run.folder)
    if not recorded:
        if (run.folder / "summary.json").exists():
            raise UserError(
                f"{run.folder} holds a run whose resolved.toml is missing or damaged, so nobody knows what it was: put "
                "that back, or delete the folder to run it anew"
            )
        return  # `train` itself compares what a checkpoint says
    changed = _differences(recorded, tomllib.loads(to_toml(run.config)))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{run.folder} holds a run in which {'; '.join(changed[:3])}{more}: all runs of a comparison share what is "
            "not their method's; put the old value back, take another suite.dir, or delete that folder to run it anew"
        )


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Keys in words that differ between the tables of two runs; one that is missing has its default."""
    found = []
    for section in Tables.model_fields:
        if section in FREE:
            continue
        old, new = there.get(section, {}), here.get(section, {})
        if not isinstance(old, dict):
            found.append(f"{section} was {as_toml(old)}, no table")
            continue
        if old.get("name") != new.get("name"):
            found.append(f"{section}.name was {as_toml(old.get('name'))}, is {as_toml(new.get('name'))}")
            continue
        owner = table_type(section, new)
        assert owner is not None
        for key, field_ in owner.model_fields.items():
            default = field_.get_default(call_default_factory=True)
            values = [table.get(key, default) for table in (old, new)]
            settled = f"{section}.{key}" == "train.dtype" and values[1] == "auto"  # a run writes what that came to
            if f"{section}.{key}" in FREE or settled or _plain(values[0]) == _plain(values[1]):
                continue
            found.append(f"{section}.{key} was {as_toml(values[0])}, is {as_toml(values[1])}")
    return found


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
