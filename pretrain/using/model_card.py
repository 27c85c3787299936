"""README.md of an exported folder: what the model is, how it is used, and whether anyone checked the folder."""

import json
from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint
from pretrain.config.schema import Config
from pretrain.config.write import to_toml
from pretrain.loop.records import read_records
from pretrain.loop.summary import summary_is_current

LEARNT = 12
"""Rows of the table of held-out losses, at most."""

HEAD = """---
# The license is yours to choose (names: https://huggingface.co/docs/hub/repositories-licenses):
# license:
library_name: transformers
pipeline_tag: text-generation
tags:
{tags}
---
"""

USE = """## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{name}"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.{dtype})
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```
"""

USE_BY_IDS = """## Use

The model was trained on ids alone; the folder has no tokenizer. With the ids of a text:

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", dtype=torch.{dtype})  # this folder
print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=40)[0].tolist())
```
"""


def write_card(folder: Path, name: str, checkpoint: Checkpoint, report: dict[str, Any], dtype: str) -> None:
    """Write the card of a model of that name; `report` is the export's. It names no path of this machine."""
    config, state = checkpoint.stage.config, checkpoint.state
    facts = {
        "parameters": f"{report['parameters']:,} (every linear merged into its dense matrix)",
        "trained as": f"{config.linear.name} linears, {report['trained_parameters']:,} parameters",
        "weights": dtype,
        "layers, width": f"{config.model.n_layers}, {config.model.dim}",
        "vocabulary": f"{config.model.vocab_size:,}",
        "context": f"{config.model.max_seq_len:,} tokens",
        "corpus": _corpus(config),
        "optimizer": config.optimizer.name,
        "steps": f"{state.step:,}",
        "tokens seen": f"{state.tokens_seen:,}",
        "training FLOPs": f"{state.flops:.3g}",
        "held-out loss": _held_out(checkpoint),
        "check": _check(report),
    }
    use = USE if checkpoint.tokenizer_files else USE_BY_IDS
    tags = "\n".join(f"- {tag}" for tag in ("llama", "sparlow", "pretrained", config.linear.name.replace("_", "-")))
    rows = "\n".join(f"| {fact} | {value} |" for fact, value in facts.items())
    parts = [
        HEAD.format(tags=tags),
        f"# {name}\n\nA LLaMA pretrained with Sparlow.\n\n| | |\n|---|---|\n{rows}\n",
        use.format(name=name, dtype={"fp32": "float32", "bf16": "bfloat16"}[dtype]),
        _learnt(checkpoint),
        f"## Configuration\n\n```toml\n{to_toml(_without_paths(checkpoint.config))}```\n",
    ]
    (folder / "README.md").write_text("\n".join(filter(None, parts)), encoding="utf-8")


def _corpus(config: Config) -> str:
    """The name of the corpus, or those of a mixture's with their weights."""
    if not config.data.mixture:
        return Path(config.data.path).name
    named = ((Path(source.path).name, source.weight) for source in config.data.mixture.values())
    return ", ".join(f"{name} (weight {weight:g})" for name, weight in named)


def _without_paths(config: Config) -> Config:
    """The configuration with the last part of each path alone."""
    run = config.run.model_copy(update={"dir": Path(config.run.dir).name})
    mixture = {
        name: source.model_copy(update={"path": Path(source.path).name}) for name, source in config.data.mixture.items()
    }
    data = config.data.model_copy(update={"path": Path(config.data.path).name, "mixture": mixture})
    return config.model_copy(update={"run": run, "data": data})


def _run(checkpoint: Checkpoint) -> Path:
    return checkpoint.folder.resolve().parent.parent


def _held_out(checkpoint: Checkpoint) -> str:
    """What the run's summary says, if it is of this checkpoint's step."""
    run = _run(checkpoint)
    if not summary_is_current(run, checkpoint.state.step):
        return "not known: the run's summary is not of this step"
    summary = json.loads((run / "summary.json").read_text())
    bits = summary["bits_per_byte"]
    return f"{summary['val_loss']:.4f} nats per token" + (f", {bits:.4f} bits per byte" if bits is not None else "")


def _learnt(checkpoint: Checkpoint) -> str:
    """The held-out losses that the run has logged up to this step; nothing where it logged none, or the log is gone."""
    try:
        records, *_ = read_records(_run(checkpoint) / "metrics.jsonl")
    except OSError:
        return ""
    seen = []
    for record in records:
        if record["step"] <= checkpoint.state.step and record.get("val/loss") is not None:
            seen.append((record["step"], record["val/loss"], record.get("val/bits_per_byte")))
    if not seen:
        return ""
    last = len(seen) - 1
    chosen = [seen[i] for i in sorted({round(k * last / (LEARNT - 1)) for k in range(LEARNT)})]
    rows = [f"| {step:,} | {loss:.4f} | {'' if bits is None else f'{bits:.4f}'} |" for step, loss, bits in chosen]
    head = "## Held-out loss while it was trained\n\n| step | nats per token | bits per byte |\n|---:|---:|---:|\n"
    return head + "\n".join(rows) + "\n"


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
