"""Faults on purpose, for the tests: `SPARLOW_FAULT=<point>[:n][/rank]` strikes at the n-th visit of one named point.

Several are separated by commas; with a rank, only that process is struck.
"""

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # readers of files need no torch
    from torch import Tensor

SPIKE = 50.0
"""By how much "loss_spike" and "gradient_spike" are too large."""

POINTS = {
    "copied": "after a save in the background has its copies, before it writes them",
    "mid_file": "within a file of a checkpoint, after its first 16 MiB",
    "shard": "after a file of tensors",
    "before_manifest": "after a checkpoint's last file but the manifest",
    "before_rename": "after the manifest, before the checkpoint has its name",
    "before_latest": "after that, before `latest` is rewritten",
    "after_save": "after a save and the deletion of older checkpoints",
    "prune": "within the deletion of an old checkpoint",
    "disk_full": "a file of a checkpoint meets a full disk",
    "opening": "a run opens: its configuration is settled, its model is not there",
    "micro_step": "before a micro-step",
    "evaluation": "before a forward pass of an evaluation",
    "sample": "before a token of a sample is drawn",
    "nan_gradient": "the gradient of a micro-step is not finite",
    "nan_loss": "the loss of a micro-step is not finite, though its gradient is",
    "loss_spike": "the loss of a micro-step, and with it the gradient, is SPIKE times what it is",
    "gradient_spike": "the gradient of a micro-step is SPIKE times what it is",
    "before_rewind": "before anything is changed to go back",
    "in_rewind": "after the newer checkpoints are deleted",
    "after_rewind": "after the commit of what the run goes on from",
    "before_growth": "after the small model's last checkpoint",
    "after_growth": "after the grown model's checkpoint",
    "prepare_tokenizer": "before the tokenizer is trained, in the process that trains it",
    "prepare_batch": "within the tokenization of a corpus, after a batch of documents",
    "prepare_commit": "before a prepared corpus has its name",
}
"""Where a fault can strike, by name; a process that is asked for another one ends with an error."""

_visits: Counter[str] = Counter()


class _Fault(NamedTuple):
    """One fault of the environment's list."""

    point: str
    visit: int
    rank: str
    """Empty for all."""

    @classmethod
    def parse(cls, text: str) -> "_Fault":
        place, _, rank = text.partition("/")
        point, _, visit = place.partition(":")
        return cls(point, int(visit or 1), rank)


def fault_point(point: str) -> None:
    """Die here as by `kill -9`, when the environment names this point; SPARLOW_FAULT_SIGNAL=SIGTERM sends another."""
    if fault_flag(point):
        # To this thread: what is sent to the process may wait until another one runs.
        signal.raise_signal(signal.Signals[os.environ.get("SPARLOW_FAULT_SIGNAL", "SIGKILL")])


def fault_flag(point: str) -> bool:
    """Whether the environment asks for a fault at this visit of `point`; ValueError for one that does not exist."""
    asked = os.environ.get("SPARLOW_FAULT")
    if not asked:
        return False
    faults = [_Fault.parse(text) for text in asked.split(",")]
    if unknown := [fault.point for fault in faults if fault.point not in POINTS]:
        # A misspelt name would strike nowhere, and its test would show nothing.
        raise ValueError(f"SPARLOW_FAULT names no point: {unknown[0]}; there are {', '.join(POINTS)}")
    faults = [fault for fault in faults if fault.point == point]
    if not faults:
        return False
    _visits[point] += 1
    rank = os.environ.get("RANK", "0")
    return any(fault.visit == _visits[point] and fault.rank in ("", rank) for fault in faults)


def spoiled(loss: "Tensor") -> "tuple[Tensor, Tensor, float]":
    """Return a loss (0-d) as the backward pass takes it and as it is seen (detached), and a factor of its gradient.

    "loss_spike" makes both too large, "nan_loss" what is seen alone not finite, and "gradient_spike" the gradient alone
    too large.
    """
    loss = loss * SPIKE if fault_flag("loss_spike") else loss
    seen = loss.detach()
    seen = seen * float("nan") if fault_flag("nan_loss") else seen
    return loss, seen, SPIKE if fault_flag("gradient_spike") else 1.0
