"""A summary of a run that has none of its last steps: it is still going, or was killed."""

from pathlib import Path
from typing import Any

from model.counts import count_parameters
from pretrain.config.schema import Config
from pretrain.report.curve import COST_KEYS
from pretrain.report.data import read_json

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


def partial_summary(records: list[dict[str, Any]], config: Config | None, checkpoints: list[Path]) -> dict[str, Any]:
    """What the logged steps, the newest checkpoint's state and the configuration know of it."""
    figures = {key: _last(records, logged) for key, logged in FIGURES.items()}
    figures = {key: value for key, value in figures.items() if value is not None}
    state = next((found for folder in checkpoints if (found := read_json(folder / "state.json"))), {})
    stages = _stages(records, list(state.get("grown", [])), config)
    if stages:
        figures |= {"stages": stages, "growth_stages": len(stages), "growths": len(stages) - 1}
    elif config is not None:
        figures |= {"growth_stages": 1, "growths": 0}
    if config is not None:
        layers = _last(records, LAYERS)
        stage = next((s for s in config.stages if s.config.model.n_layers == layers), config.stages[-1]).config
        figures["parameters"] = count_parameters(stage.model, stage.linear)["total"]
    return figures


def _stages(records: list[dict[str, Any]], grown: list[dict[str, Any]], config: Config | None) -> list[dict[str, Any]]:
    """The stages that ended in a growth, and the one that trains; empty where there was no growth."""
    layers = _last(records, LAYERS) or (config.model.n_layers if config else None)
    if not grown or layers is None:
        return []
    # The last step may have logged its evaluation alone.
    reached = {key: _last(records, tag) for key, tag in COST_KEYS.items()}
    spent = {key: at - sum(stage[key] for stage in grown) for key, at in reached.items() if at is not None}
    steps = records[-1]["step"] - sum(stage["steps"] for stage in grown)
    return [*grown, {"n_layers": layers, "steps": steps, **spent}]


def _last(records: list[dict[str, Any]], key: str) -> Any:
    return next((record[key] for record in reversed(records) if record.get(key) is not None), None)
