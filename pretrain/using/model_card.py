"""README.md of an exported folder: what the model is, and whether anyone checked that the folder is it."""

import json
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.loop.summary import summary_is_current


def write_card(folder: Path, name: str, checkpoint: Checkpoint, report: dict[str, Any], dtype: str) -> None:
    """Write the card of a model of that name; `report` is the export's."""
    config, state = checkpoint.stage.config, checkpoint.state
    facts = {
        "parameters": f"{report['parameters']:,} (every linear merged into its dense matrix)",
        "trained as": f"{config.linear.name} linears, {report['trained_parameters']:,} parameters",
        "weights": dtype,
        "layers, width": f"{config.model.n_layers}, {config.model.dim}",
        "vocabulary": f"{config.model.vocab_size:,}",
        "context": f"{config.model.max_seq_len:,} tokens",
        "steps": f"{state.step:,}",
        "tokens seen": f"{state.tokens_seen:,}",
        "held-out loss": _held_out(checkpoint),
        "check": _check(report),
    }
    rows = "\n".join(f"| {fact} | {value} |" for fact, value in facts.items())
    text = f"# {name}\n\nA LLaMA pretrained with Sparlow.\n\n| | |\n|---|---|\n{rows}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _held_out(checkpoint: Checkpoint) -> str:
    """What the run's summary says, if it is of this checkpoint's step."""
    run = checkpoint.folder.resolve().parent.parent
    if not summary_is_current(run, checkpoint.state.step):
        return "not known: the run's summary is not of this step"
    summary = json.loads((run / "summary.json").read_text())
    bits = summary["bits_per_byte"]
    return f"{summary['val_loss']:.4f} nats per token" + ("" if bits is None else f", {bits:.4f} bits per byte")


def _check(report: dict[str, Any]) -> str:
    if not report["checked"]:
        return "none: exported with --no-check, so nothing shows that this folder computes what the checkpoint does"
    readers = "this code" + (f" and transformers {report['transformers']}" if report["transformers"] else "")
    said = f"logits read by {readers} equal those of the weights within fp32 rounding"
    if report["weights_error"]:
        said += f"; rounding the weights moved the checkpoint's by {report['weights_error']:.1e} of their spread (rms)"
    if report["folder_loss"] is not None:
        said += f"; loss on a part of the held-out text {report['folder_loss']:.4f}, before {report['model_loss']:.4f}"
    if report["transformers"] is None:
        return said + "; not checked with transformers, which was not installed"
    if report["tokenizer_strings"] is None:
        return said + "; without a tokenizer, as the run was trained on ids alone"
    said += f"; equal token ids on {report['tokenizer_strings']:,} hard strings"
    if report["tokenizer_documents"] is None:
        return said + ", but not checked on held-out text, since the run's corpus was gone"
    return said + f" and {report['tokenizer_documents']:,} documents of held-out text"
