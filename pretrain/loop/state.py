"""All numbers that a run needs to go on as if it had never stopped. (The tensors lie beside them in a checkpoint.)

There is no random-number state to keep: every random number is drawn from (seed, what it is for, step).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from model.errors import UserError
from pretrain.data.dataset import Seen
from pretrain.loop.state_fields import require_fields, require_sense

SINCE_FORMAT_3: dict[str, Any] = {
    "origin": {},
    "losses": [],
    "grad_norms": [],
    "skips": {},
    "spikes": 0,
    "rewinds": [],
    "sources": {},
}
"""Fields that checkpoints of the present format may lack, and what held for the runs that wrote those."""


@dataclass
class TrainState:
    """The progress of a run; `state.json` of a checkpoint holds exactly these fields."""

    step: int = 0
    """Optimizer steps made, skipped ones included."""
    cursor: int = 0
    """Samples taken from the data stream: the next global batch starts at this index."""
    tokens_seen: int = 0
    """Real input tokens trained on, padding not counted."""
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """Samples of each corpus of a mixture that were trained on, and their tokens; empty without one."""
    skipped_steps: int = 0
    """Steps whose update was not applied."""
    consecutive_skips: int = 0
    """How many of the last steps were skipped in a row."""
    skips: dict[str, int] = field(default_factory=dict)
    """`skipped_steps` by reason (pretrain/loop/guard.py)."""
    losses: list[float] = field(default_factory=list)
    """Losses of the last steps that were applied: the guard's window."""
    grad_norms: list[float] = field(default_factory=list)
    """Norms of their gradients."""
    spikes: int = 0
    """Steps with a spike of either, those that were gone back from included."""
    rewinds: list[dict[str, Any]] = field(default_factory=list)
    """What the run has gone back from (pretrain/loop/rewind.py)."""
    updates: int = 0
    """Updates applied since the optimizer began: AdamW's own step count."""
    flops: float = 0.0
    """FLOPs executed in training."""
    flops_dense_equivalent: float = 0.0
    """FLOPs so far if every linear were dense."""
    evaluation_due: bool = False
    """An evaluation at this step was interrupted; a resume makes it before the next step."""
    stage: int = 0
    """Which stage of the run (pretrain/growth/stages.py) trains."""
    stage_start: int = 0
    """Step after which that stage began."""
    grown: list[dict[str, Any]] = field(default_factory=list)
    """The stages that ended in a growth, as `this_stage` describes them; those of a model grown offline too."""
    origin: dict[str, Any] = field(default_factory=dict)
    """The checkpoint of another run that this one began with (pretrain/loop/origin.py); empty where it began anew."""
    train_seconds: float = 0.0
    """Wall-clock seconds in training steps, evaluation and saves not counted."""
    kernels: dict[str, Any] = field(default_factory=dict)
    """How the linears compute (pretrain/engine/kernel_choices.py): a resume makes the same choices."""

    def count_sources(self, seen: dict[str, Seen]) -> None:
        """Add what was trained on of each corpus of a mixture."""
        for name, (samples, tokens) in seen.items():
            known = self.sources.get(name, {"samples": 0, "tokens": 0})
            self.sources[name] = {"samples": known["samples"] + samples, "tokens": known["tokens"] + tokens}

    def this_stage(self, n_layers: int) -> dict[str, Any]:
        """Count layers, steps, tokens and FLOPs of the stage that trains, `n_layers` being its model's."""
        figures: dict[str, Any] = {"n_layers": n_layers, "steps": self.step - self.stage_start}
        totals = {"tokens": self.tokens_seen} | {key: getattr(self, key) for key in ("flops", "flops_dense_equivalent")}
        return figures | {key: total - sum(stage[key] for stage in self.grown) for key, total in totals.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrainState":
        """Read all fields; UserError for a missing or unknown one, but for those of SINCE_FORMAT_3, and for a value
        that no run writes (pretrain/loop/state_fields.py)."""
        data = SINCE_FORMAT_3 | data
        wrong = {field.name for field in dataclasses.fields(cls)} ^ set(data)
        if wrong:
            names = ", ".join(name[:60] for name in sorted(wrong)[:10])
            raise UserError(f"state.json: missing or unknown: {names}; it was written by another version")
        require_fields(data)
        require_sense(data)
        return cls(**data)
