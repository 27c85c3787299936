"""All numbers that a run needs to go on as if it had never stopped. (The tensors lie beside them in a checkpoint.)

There is no random-number state to keep: every random number is drawn from (seed, what it is for, step).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from model.errors import UserError


@dataclass
class TrainState:
    """The progress of a run; `state.json` of a checkpoint holds exactly these fields."""

    step: int = 0
    """Optimizer steps made, skipped ones included."""
    cursor: int = 0
    """Samples taken from the data stream: the next global batch starts at this index."""
    tokens_seen: int = 0
    """Real input tokens trained on, padding not counted."""
    skipped_steps: int = 0
    """Steps whose update was not applied because the gradient was not finite."""
    consecutive_skips: int = 0
    """How many of the last steps were skipped in a row."""
    flops: float = 0.0
    """FLOPs executed in training."""
    evaluation_due: bool = False
    """An evaluation at this step was interrupted; a resume makes it before the next step."""
    growth_stage: int = 0
    """How often the model has grown."""
    train_seconds: float = 0.0
    """Wall-clock seconds in training steps, evaluation and saves not counted."""
    kernels: dict[str, Any] = field(default_factory=dict)
    """How the linears compute (pretrain/kernel_choices.py): a resume makes the same choices."""

    @property
    def updates(self) -> int:
        """Optimizer updates applied: AdamW's own step count."""
        return self.step - self.skipped_steps

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrainState":
        """Strict: a missing or unknown field is a UserError, never a default."""
        wrong = {field.name for field in dataclasses.fields(cls)} ^ set(data)
        if wrong:
            raise UserError(
                f"state.json: missing or unknown: {', '.join(sorted(wrong))}; it was written by another version"
            )
        return cls(**data)
