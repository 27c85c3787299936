"""A row of figures for every linear of a checkpoint, and their means at every step of a run."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from model.errors import UserError
from model.spectrum import effective_rank, intruder_dimensions, singular_values, stable_rank
from model.transformer import Transformer
from pretrain.checkpoint.manifest import CheckpointRemoved
from pretrain.checkpoint.read import Checkpoint, load_model, open_folder
from pretrain.checkpoint.store import CheckpointStore
from pretrain.data.dataset import Batch
from pretrain.spectrum.gradients import watch_gradients
from pretrain.spectrum.matrices import linears, shapes, spectra

T = TypeVar("T")
Say = Callable[[str], None]

SPEAK_SECONDS = 10.0


@dataclass
class Spectra:
    """What `sparlow spectrum` has found."""

    step: int
    rows: list[dict[str, Any]]
    """By matrix: its name, shape (out, in), and by part (W, BA, S, gradient) `figures`; `intruders` where counted."""
    values: dict[str, dict[str, Tensor]]
    """Singular values by name and part, largest first."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """By checkpoint of the run, oldest first: its step, and by part the means of `figures` over all matrices."""


def figures(values: Tensor) -> dict[str, float]:
    """Return the largest singular value, the stable and the effective rank of a spectrum."""
    return {
        "largest": float(values[0]),
        "stable_rank": stable_rank(values),
        "effective_rank": effective_rank(values),
    }


def measure(checkpoint: Checkpoint, device: torch.device, say: Say, batch: Batch | None = None) -> Spectra:
    """Take the spectra of W, BA and S of every linear, and with `batch` of the gradient of its mean loss by each W.

    UserError where one holds a number that is not finite.
    """
    found = Spectra(checkpoint.state.step, [], {})
    names = list(shapes(checkpoint))
    for linear in timed(linears(checkpoint, names, device), len(names), f"step {checkpoint.state.step}", say):
        values = spectra(linear)
        for part, spectrum in values.items():
            if spectrum.isnan().any():
                raise UserError(
                    f"{checkpoint.folder}: {part} of {linear.name} has a number that is not finite; give "
                    "an earlier checkpoint"
                )
        found.values[linear.name] = values
        parts = {part: figures(spectrum) for part, spectrum in values.items()}
        found.rows.append({"matrix": linear.name, "shape": [linear.out_features, linear.in_features], **parts})
    if batch is not None:
        _add_gradients(found, load_model(checkpoint, device, torch.float32), batch, device, say)
    found.steps = [_means(found)]
    return found


def _means(found: Spectra) -> dict[str, Any]:
    """Return the step, and by part the mean of each of `figures` over the matrices that have it."""
    row: dict[str, Any] = {"step": found.step}
    for part in found.rows[0]:
        ranks = [one[part] for one in found.rows if isinstance(one.get(part), dict)]
        if ranks:
            row[part] = {key: sum(rank[key] for rank in ranks) / len(ranks) for key in ranks[0]}
    return row


def over_training(
    found: Spectra, checkpoint: Checkpoint, device: torch.device, say: Say, batch: Batch | None = None
) -> None:
    """Put the means of the run's older checkpoints before that of `checkpoint`, which `found` are of.

    One that has gone or is damaged is left out with a line.
    """
    for folder in CheckpointStore(checkpoint.folder.parent.parent).folders():
        if folder.name == checkpoint.folder.name:
            continue
        try:
            older = open_folder(folder, verify=True)
            if older.state.step < found.step:
                found.steps += measure(older, device, say, batch).steps
        except CheckpointRemoved:
            continue
        except UserError as error:
            say(f"left out: {error}")
    found.steps.sort(key=lambda row: row["step"])


def compare(
    found: Spectra, checkpoint: Checkpoint, other: Checkpoint, top: int, epsilon: float, device: torch.device, say: Say
) -> None:
    """Count the intruder dimensions of every linear against the one of that name in `other`.

    UserError where one has another shape there, or numbers that are not finite.
    """
    here, there = shapes(checkpoint), shapes(other)
    common = [name for name in here if name in there]  # of layer 0 at least
    for name in common:
        if here[name] != there[name]:
            sizes = (f"{shape[0]} x {shape[1]}" for shape in (here[name], there[name]))
            raise UserError(
                f"--against {other.folder}: {name} is {' here and '.join(sizes)} there; give a checkpoint of the same "
                "widths"
            )
    if len(common) < len(here):
        say(f"--against {other.folder}: has {len(common)} of the {len(here)} matrices; the others are not compared")
    rows = {row["matrix"]: row for row in found.rows}
    both = zip(linears(checkpoint, common, device), linears(other, common, device), strict=True)
    for one, another in timed(both, len(common), "intruders", say):
        name, new, old = one.name, one.dense_weight(), another.dense_weight()
        if not old.isfinite().all():
            raise UserError(f"--against {other.folder}: {name} has a number that is not finite; give another one")
        rows[name]["intruders"] = intruder_dimensions(new, old, top, epsilon)


def _add_gradients(found: Spectra, model: Transformer, batch: Batch, device: torch.device, say: Say) -> None:
    rows = {row["matrix"]: row for row in found.rows}
    waiting = timed(range(len(rows)), len(rows), "gradients", say)

    def seen(name: str, gradient: Tensor) -> None:
        next(waiting)
        values = singular_values(gradient).cpu()
        if values.isnan().any():
            raise UserError(f"the gradient of {name} has a number that is not finite; leave --gradients out")
        found.values[name]["gradient"] = values
        rows[name]["gradient"] = figures(values)

    watch_gradients(model, batch.tokens.to(device), batch.targets.to(device), seen)


def timed(items: Iterable[T], count: int, what: str, say: Say) -> Iterator[T]:
    """Pass `items` on, `count` of them, and say now and then how many are done and how long the rest will take."""
    start = spoken = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - spoken > SPEAK_SECONDS:
            spoken = now
            say(f"{what}: {done} of {count} matrices, {(now - start) * (count / done - 1):.0f} s left")
        yield item


def run_folder(path: Path) -> Path | None:
    """Return the folder of the run that a step's folder lies in; None where it lies elsewhere."""
    return path.parent.parent if path.parent.name == "checkpoints" else None
