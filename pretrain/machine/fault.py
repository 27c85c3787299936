"""Faults on purpose, for the tests: `SPARLOW_FAULT=<point>[:n][/rank]` strikes at the n-th visit of one named point.

Several are separated by commas. With a rank, or SPARLOW_FAULT_RANK, only that process of several is struck.
"""

import os
import signal
from collections import Counter

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
    "before_growth": "after the small model's last checkpoint",
    "after_growth": "after the grown model's checkpoint",
    "prepare_batch": "within the tokenization of a corpus, after a batch of documents",
    "prepare_commit": "before a prepared corpus has its name",
}
"""Where a fault can strike, by name; a process that is asked for another one ends with an error."""

_visits: Counter[str] = Counter()


def fault_point(point: str) -> None:
    """Die here as by `kill -9`, when the environment names this point; SPARLOW_FAULT_SIGNAL=SIGTERM sends another."""
    if fault_flag(point):
        os.kill(os.getpid(), signal.Signals[os.environ.get("SPARLOW_FAULT_SIGNAL", "SIGKILL")])


def fault_flag(point: str) -> bool:
    """Whether the environment asks for a fault at this visit of `point`; ValueError for one that does not exist."""
    setting = os.environ.get("SPARLOW_FAULT")
    if not setting:
        return False
    asked = [parse(fault) for fault in setting.split(",")]
    rank = os.environ.get("RANK", "0")
    if all(name != point for name, _, _ in asked) or os.environ.get("SPARLOW_FAULT_RANK", rank) != rank:
        return False
    _visits[point] += 1
    return any(name == point and count == _visits[point] and there in ("", rank) for name, count, there in asked)


def parse(fault: str) -> tuple[str, int, str]:
    """The point, visit and rank ("" for all) of one fault; ValueError for a point that does not exist."""
    place, _, rank = fault.partition("/")
    name, _, count = place.partition(":")
    if name not in POINTS:  # a misspelt name would strike nowhere, and its test would show nothing
        raise ValueError(f"SPARLOW_FAULT names no point: {name}; there are {', '.join(POINTS)}")
    return name, int(count or 1), rank
