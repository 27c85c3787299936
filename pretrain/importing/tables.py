"""The configuration of an imported checkpoint, and the file from which the user's own run goes on."""

from pathlib import Path
from typing import Any

import torch

from model.config import ModelConfig
from model.hf.load import Folder
from model.linear import LinearConfig
from pretrain.config.literals import as_toml
from pretrain.config.load import validate
from pretrain.config.schema import Config
from pretrain.config.write import table_lines

LR = 5e-5
"""Peak learning rate of the user's run: what a model is trained with from the start would undo what it knows."""

SEQ_LEN = 2048
"""Tokens of a sequence, where the model takes as many, until the user says otherwise."""

BATCH = 64
"""Sequences in one update of the user's run: with SEQ_LEN tokens each, as many as in the papers' recipes."""

FILE = "train.toml"
"""Name of the user's configuration in the folder of an import."""


def recorded_config(folder: Folder, linear: dict[str, Any], seed: int, out: Path) -> Config:
    """The configuration of the checkpoint; UserError where `linear` does not fit the model."""
    model = {key: value for key, value in folder.config.model_dump().items() if value != _default(key)}
    half = all(folder.dtype(tensor) == torch.bfloat16 for tensor in folder.tensors())
    train = {"seq_len": min(SEQ_LEN, folder.config.max_seq_len), "dtype": "bf16" if half else "fp32"}
    return validate({"run": {"dir": str(out), "seed": seed}, "model": model, "linear": linear, "train": train})


def _default(key: str) -> Any:
    return ModelConfig.model_fields[key].default


def tables(model: ModelConfig, linear: LinearConfig) -> str:
    """[model] and [linear] of a TOML file for a run that goes on from the import; [model] without plain defaults."""
    lines = ["[model]"]
    for key in ModelConfig.model_fields:
        value = getattr(model, key)
        if value != _default(key) or ModelConfig.model_fields[key].is_required() or key in ALWAYS:
            lines.append(f"{key} = {as_toml(value)}")
    lines += ["", "[linear]"]
    lines += [f"{key} = {as_toml(getattr(linear, key))}" for key in type(linear).model_fields if key not in APART]
    if ranks := getattr(linear, "ranks", ()):
        lines += ["", *table_lines("linear.ranks", ranks)]
    return "\n".join(lines) + "\n"


ALWAYS = ("dim", "n_layers", "n_heads", "ffn_dim", "vocab_size", "max_seq_len", "rope_theta", "norm_eps")
"""Keys of [model] that are written even where they have their default."""


APART = ("ranks", "init")
"""Keys of [linear] that are not written: ranks have a table, and init decides nothing where all values are there."""


def user_file(config: Config, out: str) -> str:
    """A configuration that `train --from` takes; its other tables have their defaults until the user sets them."""
    return (
        f"# Goes on from the imported model: sparlow train {out}/{FILE} --from {out} --data.path=DATA\n"
        "# Tables and keys that are not here have the defaults that sparlow train --print-config shows.\n"
        f"[run]\ndir = {as_toml(out.rstrip('/') + '-continued')}\n\n"
        f"{tables(config.model, config.linear)}\n"
        f"[optimizer]\nlr = {LR}\n\n"
        f"[train]\nseq_len = {config.train.seq_len}\nmicro_batch_size = 1\nglobal_batch_size = {BATCH}\n"
    )
