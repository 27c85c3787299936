"""Advice that works: a key that a run with a checkpoint keeps can only change in a new run, which may begin from it."""

import re

from model.errors import RunFailed, UserError
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.config.write import fixed_keys

NEW_RUN = "sparlow train CONFIG --from CHECKPOINT --run.dir=NEW"


def out_of_memory(error: Exception) -> RunFailed:
    """The allocator's first sentence, and what takes less."""
    sentence = str(error).partition(". ")[0]
    return RunFailed(f"{sentence}; lower train.micro_batch_size or set train.checkpoint_every_layers = 1")


def with_way_on(sentence: str, config: Config, store: CheckpointStore) -> str:
    """`sentence`, and where it names keys that a resume refuses to change and there is a checkpoint, the way on."""
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
    return NEW_RUN.replace("CHECKPOINT", str(checkpoint))


def amended(error: UserError | RunFailed, config: Config, store: CheckpointStore) -> UserError | RunFailed:
    """The same error with `with_way_on` in its sentence."""
    sentence = with_way_on(str(error), config, store)
    if sentence == str(error):
        return error
    better = type(error)(sentence)
    better.__dict__.update(error.__dict__)
    return better
