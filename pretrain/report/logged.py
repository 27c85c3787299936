"""What a run's folder says about it: the logged steps and the summary, also of a run that has not ended."""

import itertools
import math
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from model.lfs import refuse_pointer
from pretrain.checkpoint.folders import named_folders
from pretrain.loop.records import read_records
from pretrain.machine.files import read_json
from pretrain.report.curve import COST_KEYS, Curve
from pretrain.report.data import Data, data_of, recorded_settings, run_config
from pretrain.report.summary import are_stages, is_count, read_summary

if TYPE_CHECKING:
    from pretrain.config.schema import Config


@dataclass(frozen=True)
class LoggedRun:
    """A run as its files show it; `curve` is its training loss, not smoothed."""

    name: str
    path: Path
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    curve: Curve
    data: Data = field(default_factory=Data)
    unfinished: str | None = None
    """Why its figures are those logged last: what it lacks."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The tables of its `resolved.toml`."""
    about: dict[str, Any] = field(default_factory=dict)
    """Its `run.json`, which says what it is made of."""

    @property
    def has_flops(self) -> bool:
        return "flops" in self.curve.costs

    @property
    def grown(self) -> bool | None:
        """None where its summary does not tell."""
        stages = self.summary.get("growth_stages")
        return None if stages is None else stages > 1

    def figures(self, key: str, kind: str) -> tuple[list[float], list[float]]:
        """The costs of `kind` and the values of `key` at the records that have both.

        `kind` "bytes", of text, is there where `data` knows how many a token is on average.
        """
        scale: float = 1  # an int, which leaves the costs as they are logged
        if kind == "bytes":
            kind, scale = "tokens", self.data.bytes_per_token or math.nan
        points = [(record.get(COST_KEYS[kind]), record[key]) for record in self.records if key in record]
        both = [(cost * scale, value) for cost, value in points if cost is not None and value is not None]
        return [cost for cost, _ in both], [value for _, value in both]

    def growth(self, kind: str) -> list[tuple[float, str]]:
        """List after what cost of `kind` the model has grown, and from how many layers to how many."""
        stages = self.summary.get("stages") or []
        spent, found = 0.0, []
        for before, after in itertools.pairwise(stages):
            if kind not in before:
                return []
            spent += before[kind]
            layers = before["n_layers"], after["n_layers"]
            found.append((spent, f"{layers[0]} → {layers[1]} layers" if layers[0] != layers[1] else "grown"))
        return found


def read_runs(paths: list[Path]) -> list[LoggedRun]:
    """Runs from their folders; UserError names the file that is missing, damaged or empty."""
    return [_read(name, path, len(paths) > 1) for name, path in zip(_names(paths), paths, strict=True)]


def _read(name: str, path: Path, compared: bool) -> LoggedRun:
    """A run; its data are looked at where it is `compared` with others."""
    records = _records(path)
    curve = _training_curve(records)
    if not curve.losses:
        raise UserError(f"{path}: metrics.jsonl holds no logged step with a training loss; leave this run out")
    settings, about, checkpoints = recorded_settings(path), read_json(path / "run.json"), _checkpoints(path)
    summary = read_summary(path)
    unfinished = None
    if summary is None or _is_older(summary, records):
        which = "no summary.json" if summary is None else "a summary.json of an earlier step"
        unfinished = f"has {which}, so it is still training or was killed"
        summary = _so_far(path, records, about, checkpoints)
    elif error := summary.get("error"):
        unfinished = f"ended with an error ({error})"
        known = {key: value for key, value in summary.items() if value is not None}
        summary = _so_far(path, records, about, checkpoints) | known
    data = settings.get("data")
    found = data_of(data if isinstance(data, dict) else {}, checkpoints) if compared else Data()
    return LoggedRun(name, path, records, summary, curve, found, unfinished, settings, about)


def _checkpoints(run: Path) -> list[Path]:
    """The folders of its checkpoints, newest first."""
    try:
        return [path for path in named_folders(run / "checkpoints") if path.is_dir()]
    except OSError as error:
        raise UserError(f"{run}/checkpoints: cannot be read ({error.strerror})") from None


def _is_older(summary: dict[str, Any], records: list[dict[str, Any]]) -> bool:
    """Whether steps were logged since: the run went on, and has not come to an end again."""
    return (summary.get("step") or 0) < records[-1]["step"]


def _names(runs: list[Path]) -> list[str]:
    """What each run is called: its folder's name, or its path as given where two folders have the same name."""
    names = [Path(realpath(run)).name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def _records(run: Path) -> list[dict[str, Any]]:
    """The logged steps; the lines at the end that a kill or a full disk has damaged are left out."""
    try:
        records, broken, lines = read_records(run / "metrics.jsonl")
    except FileNotFoundError:
        raise UserError(f"{run}: holds no metrics.jsonl; give the folder of a run") from None
    except OSError as error:
        raise UserError(f"{run}/metrics.jsonl: cannot be read ({error.strerror}); give the folder of a run") from None
    if not records:
        refuse_pointer(run / "metrics.jsonl")
    if broken and len(broken) <= lines - broken[0]:  # a sound line follows
        raise UserError(f"{run}/metrics.jsonl: line {broken[0]} is not JSON of a step; delete that line")
    return records


def _training_curve(records: list[dict[str, Any]]) -> Curve:
    """The training loss wherever it is logged and finite. A cost that one of these steps lacks is left out entirely."""
    steps = [r for r in records if r.get("train/loss") is not None and r.get(COST_KEYS["tokens"])]
    costs: dict[str, list[Any]] = {kind: [r.get(key) for r in steps] for kind, key in COST_KEYS.items()}
    return Curve([r["train/loss"] for r in steps], {kind: spent for kind, spent in costs.items() if all(spent)})


FIGURES = {
    "step": "step",
    "tokens_seen": COST_KEYS["tokens"],
    "flops": COST_KEYS["flops"],
    "flops_dense_equivalent": COST_KEYS["flops_dense_equivalent"],
    "val_loss": "val/loss",
    "bits_per_byte": "val/bits_per_byte",
    "tokens_per_second": "perf/tokens_per_s",
}
"""Keys of summary.json, and where the logged steps have them."""
LAYERS = "growth/layers"


def _so_far(
    path: Path, records: list[dict[str, Any]], about: dict[str, Any], checkpoints: list[Path]
) -> dict[str, Any]:
    """The partial summary of a run, from its `run.json` where that is there, which is quicker than a model's shape."""
    layers, parameters = about.get("n_layers"), about.get("parameters")
    if not (is_count(layers) and is_count(parameters)):
        return partial_summary(records, run_config(path), checkpoints)
    device = {"device": about["device"]} if isinstance(about.get("device"), str) else {}
    found = partial_summary(records, None, checkpoints, layers) | device
    return {"growth_stages": 1, "growths": 0, "parameters": parameters} | found


def partial_summary(
    records: list[dict[str, Any]], config: "Config | None", checkpoints: list[Path], n_layers: int | None = None
) -> dict[str, Any]:
    """What the logged steps, the newest checkpoint's state and the configuration know of it.

    `n_layers` are those of the model that trains, where the configuration is not there to tell.
    """
    figures = {key: _last(records, logged) for key, logged in FIGURES.items()}
    figures = {key: value for key, value in figures.items() if value is not None}
    state = next((found for folder in checkpoints if (found := read_json(folder / "state.json"))), {})
    grown = state.get("grown", [])
    layers = _last(records, LAYERS) or (config.model.n_layers if config else n_layers)
    stages = _stages(records, grown if are_stages(grown) else [], layers)
    if stages:
        figures |= {"stages": stages, "growth_stages": len(stages), "growths": len(stages) - 1}
    elif config is not None:
        figures |= {"growth_stages": 1, "growths": 0}
    if config is not None:
        from model.counts import count_parameters

        step = _last(records, "step") or 0
        stage = next((s for s in config.stages if step <= s.end), config.stages[-1]).config
        figures["parameters"] = count_parameters(stage.model, stage.linear)["total"]
    return figures


def _stages(records: list[dict[str, Any]], grown: list[dict[str, Any]], layers: float | None) -> list[dict[str, Any]]:
    """The stages that ended in a growth, and the one that trains with `layers`; empty where there was no growth."""
    if not grown or layers is None:
        return []
    # The last step may have logged its evaluation alone.
    reached = {key: _last(records, tag) for key, tag in COST_KEYS.items()}
    spent = {key: at - sum(stage.get(key, 0) for stage in grown) for key, at in reached.items() if at is not None}
    steps = records[-1]["step"] - sum(stage.get("steps", 0) for stage in grown)
    return [*grown, {"n_layers": layers, "steps": steps, **spent}]


def _last(records: list[dict[str, Any]], key: str) -> Any:
    return next((record[key] for record in reversed(records) if record.get(key) is not None), None)
