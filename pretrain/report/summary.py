"""summary.json as a report reads it: only what looks like the figures that a run writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.lfs import refuse_pointer
from pretrain.loop.records import is_figure
from pretrain.machine.files import json_object, read_regular
from pretrain.report.curve import COST_KEYS


def read_summary(run: Path) -> dict[str, Any] | None:
    """The figures of a run, those of another form left out; None for a run that is still going, or was killed."""
    try:
        summary = json_object(read_regular(run / "summary.json").decode())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        summary = None
    except OSError as error:
        raise UserError(f"{run}/summary.json: cannot be read ({error.strerror})") from None
    if summary is None:
        refuse_pointer(run / "summary.json")
        raise UserError(f"{run}/summary.json: is not a JSON object; delete it and run sparlow train again")
    return {key: value for key, value in summary.items() if value is None or FORMS.get(key, is_figure)(value)}


def is_count(value: Any) -> bool:
    """Whether a value counts something."""
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def are_stages(value: Any) -> bool:
    """Whether a list describes the stages of a run, as `TrainState.this_stage` does."""
    return isinstance(value, list) and all(
        isinstance(stage, dict)
        and all(is_count(stage.get(key, 0)) for key in ("n_layers", "steps"))
        and "n_layers" in stage
        and all(is_figure(stage.get(key, 0)) for key in COST_KEYS)
        for stage in value
    )


FORMS: dict[str, Callable[[Any], bool]] = {
    "error": _is_text,
    "device": _is_text,
    "stages": are_stages,
    "growth_stages": is_count,
    "versions": _are_texts,
    "dtype": _is_text,
}
"""What is no number, and how it looks."""
