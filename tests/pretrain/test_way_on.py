"""Advice is taken or is not given: a message to a run with a checkpoint that names a key which a resume refuses to
change also says how a new run begins from that checkpoint."""

import re

import pytest
import torch
from support import train_here

from model.errors import RunFailed, UserError
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config import load_config
from pretrain.config.write import fixed_keys
from pretrain.loop import train
from pretrain.loop.resume import amended
from pretrain.machine.distributed import shared


@pytest.fixture(scope="module")
def begun(corpus, tmp_path_factory):
    """The configuration of a run with a checkpoint at step 1."""
    from support import write_tiny

    folder = tmp_path_factory.mktemp("begun")
    train_here(write_tiny(folder, corpus), "--train.max_steps=1")
    return folder / "tiny.toml"


def require_way_on(message: str, config_file) -> None:
    """Every key in `message` may change on a resume, or the way to a new run is there, with this checkpoint."""
    fixed = fixed_keys(load_config(config_file, []))
    if any(key in fixed for key in re.findall(r"[a-z]+\.[a-z_0-9]+", message)):
        assert re.search(r"sparlow train CONFIG --from \S+/checkpoints/step-\d+ --run\.dir=NEW", message), message


def test_every_fixed_key_brings_the_way_on_and_no_other(begun):
    config = load_config(begun, [])
    store = CheckpointStore(begun.parent / "run")
    fixed = fixed_keys(config)
    for section, table in config.model_dump().items():
        for key in table:
            for kind in (UserError, RunFailed):
                error = amended(kind(f"something is wrong; lower {section}.{key}"), config, store)
                assert type(error) is kind
                assert ("--from" in str(error)) == (f"{section}.{key}" in fixed)


def test_without_a_checkpoint_the_keys_may_change(begun, tmp_path):
    error = RunFailed("something is wrong; lower optimizer.lr")
    assert amended(error, load_config(begun, []), CheckpointStore(tmp_path)) is error


def test_an_error_of_all_ranks_stays_one(begun):
    """Otherwise each rank would print its own."""
    error = shared(RunFailed("something is wrong; lower optimizer.lr"))
    better = amended(error, load_config(begun, []), CheckpointStore(begun.parent / "run"))
    assert better is not error
    assert better.on_all_ranks


# What goes wrong when a run goes on, and what is said of it.
TROUBLES = {
    "another value": "optimizer.lr was 0.001",
    "skips": "lower optimizer.lr",
    "out of memory": "lower train.micro_batch_size",
    "another vocabulary": "model.vocab_size 64 is smaller",
    "processes": "train.global_batch_size",
    "memory of the GPU": "sparlow plan",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_advice_that_a_resume_gets(begun, monkeypatch, trouble):
    options = ["--train.max_steps=3"]
    if trouble == "another value":
        options.append("--optimizer.lr=0.01")
    elif trouble == "skips":
        monkeypatch.setattr("pretrain.engine.base.fault_flag", lambda point: True)
        options = ["--train.max_steps=30"]
    elif trouble == "out of memory":

        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        monkeypatch.setattr(train, "train_step", full)
    elif trouble == "another vocabulary":
        options.append("--model.vocab_size=64")
    elif trouble == "processes":
        from pretrain.loop import run

        divide = run.require_divisible
        monkeypatch.setattr(run, "require_divisible", lambda batch, micro, _: divide(batch, micro, 3))
    else:
        from pretrain.loop import run

        def too_small(config, world):
            raise UserError("the model of 2 layers needs too much; `sparlow plan CONFIG` names changes that fit")

        monkeypatch.setattr(run, "require_memory", too_small)
    with pytest.raises((UserError, RunFailed)) as caught:
        train_here(begun, *options)
    assert TROUBLES[trouble] in str(caught.value)
    require_way_on(str(caught.value), begun)


def test_the_end_of_a_schedule_is_not_the_end_of_advice(tiny, tmp_path, capsys):
    """Below the schedule's end train.max_steps goes on; at its end only a new run does."""
    options = ["--schedule.total_steps=2"]
    for last, expected in (
        (1, "raise train.max_steps to go on, at most to the schedule's end at step 2"),
        (2, "--from"),
    ):
        for _ in range(2):
            capsys.readouterr()
            assert train_here(tiny, *options, f"--train.max_steps={last}") == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if "nothing to do" in line)
        assert expected in line
        assert ("raise train.max_steps" in line) == (last == 1)
