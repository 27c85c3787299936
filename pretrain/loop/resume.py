"""Going on from a checkpoint: whether it may, and what it takes over from it."""

import re
from typing import Any

import torch

from model.errors import RunFailed, UserError
from pretrain.checkpoint.read import Checkpoint
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.config.write import fixed_keys
from pretrain.machine.hardware import has_bf16


def resolve_dtype(config: Config, device: torch.device, checkpoint: Checkpoint | None) -> Config:
    """`config` with train.dtype = "auto" settled: by the checkpoint that the run goes on from, else by the device.

    Weights that are stored in bf16 are computed with in bf16. On a CPU that works without bf16 instructions too; a GPU
    must have them (UserError).
    """
    dtype = config.train.dtype
    if dtype == "auto" and checkpoint:
        dtype = checkpoint.config.train.dtype
    elif dtype == "auto":
        dtype = "bf16" if has_bf16(device) or config.optimizer.weights.startswith("bf16") else "fp32"
    if dtype == "bf16" and device.type == "cuda" and not has_bf16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise UserError(
            f"bf16 needs a GPU of compute capability 8.0 or more, {torch.cuda.get_device_name(device)} has {major}."
            f'{minor}: start a run with train.dtype = "fp32" and optimizer.weights = "fp32_master", or take another GPU'
        )
    return config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})})


def require_same_run(config: Config, data_fingerprint: str, checkpoint: Checkpoint) -> None:
    """UserError with a diff when `checkpoint` belongs to another model, schedule, optimizer or corpus."""
    if not checkpoint.manifest.data_fingerprint:
        raise UserError(
            f"run.dir: {config.run.dir} holds an imported model, with which a run of its own begins: train with --from "
            f"{config.run.dir} --run.dir=NEW"
        )
    there, here = fixed_keys(checkpoint.config), fixed_keys(config)
    missing: Any = "(absent)"
    changed = [
        f"{key} was {there.get(key, missing)!r}, is {here.get(key, missing)!r}"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, missing) != here.get(key, missing)
    ]
    if checkpoint.manifest.data_fingerprint != data_fingerprint:
        changed += _other_corpora(config, data_fingerprint, checkpoint.manifest.data_fingerprint)
    if changed:
        raise UserError(
            f"{checkpoint.folder.name} of {config.run.dir} belongs to a different run: {'; '.join(changed)}; "
            "restore these, or choose another run.dir"
        )


def _other_corpora(config: Config, here: str, there: str) -> list[str]:
    """Say which folders hold other corpora than the checkpoint's fingerprint names."""
    before, after = _by_name(there), _by_name(here)
    if before.keys() != after.keys():
        return [f"it was trained on {_corpora(before)}, not on {_corpora(after)}"]
    keys = {"": "data.path"} | {name: f"data.mixture.{name}" for name in config.data.mixture}
    return [
        f"{keys[name]} holds another corpus or tokenizer ({config.data.paths[keys[name]]}: manifest "
        f"{after[name][:12]}, the checkpoint's is {before[name][:12]})"
        for name in after
        if before[name] != after[name]
    ]


def _by_name(fingerprint: str) -> dict[str, str]:
    """The hash of each corpus of a mixture by its name; "" names the one of data.path."""
    parts = (part.rpartition(" ") for part in fingerprint.split(", "))
    return {name: own for name, _, own in parts}


def _corpora(by_name: dict[str, str]) -> str:
    return "the corpus of data.path" if "" in by_name else f"a mixture of {', '.join(by_name)}"


def out_of_memory(error: Exception) -> RunFailed:
    """Name the allocator's first sentence, and what takes less."""
    sentence = str(error).partition(". ")[0]
    return RunFailed(
        f"{sentence}; lower train.micro_batch_size, or set train.checkpoint_every_layers = 1 "
        "and train.offload_activations = true"
    )


def with_way_on(sentence: str, config: Config, store: CheckpointStore) -> str:
    """Add the way on to `sentence` where it names keys that a resume must not change and there is a checkpoint."""
    keys = fixed_keys(config)
    named = [key for key in dict.fromkeys(re.findall(r"\b[a-z]+\.[a-z_0-9]+\b", sentence)) if key in keys]
    newest = next(iter(store.folders()), None)
    if not named or newest is None or "--from" in sentence:
        return sentence
    return (
        f"{sentence} ({config.run.dir} has a checkpoint and keeps its {' and '.join(named)}; another value takes a new "
        f"run from it: {new_run(newest)})"
    )


def new_run(checkpoint: object) -> str:
    """The command that starts a new run from `checkpoint`."""
    return f"sparlow train CONFIG --from {checkpoint} --run.dir=NEW"


def amended(error: UserError | RunFailed, config: Config, store: CheckpointStore) -> UserError | RunFailed:
    """Return the error with `with_way_on` in its sentence."""
    sentence = with_way_on(str(error), config, store)
    if sentence == str(error):
        return error
    better = type(error)(sentence)
    better.__dict__.update(error.__dict__)
    return better
