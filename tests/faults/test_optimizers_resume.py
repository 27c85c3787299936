"""Every optimizer goes on after a pause as if there had been none, also around a refresh of its bases."""

from pathlib import Path

import pytest
from support import logged, tensor_hashes, train_here

from pretrain.engine.own import OwnEngine
from pretrain.optim import OPTIMIZERS
from pretrain.optim.rules import PRESETS

GAP = 4


@pytest.mark.fault("F1")
@pytest.mark.parametrize("name", ["adamw", "apollo_mini"])
def test_what_is_restored_does_not_lie_in_the_file(tiny, tmp_path, monkeypatch, name):
    """It lies where a tensor of the run's own would, so that every sum has the same order; and the file can go."""
    from pretrain.loop import train

    options, mapped, step = [f"--optimizer.name={name}", "--linear.name=dense"], [], train.train_step

    def look(*arguments):
        mapped.append(Path("/proc/self/maps").read_text().count(f"{tmp_path}/run/checkpoints"))
        return step(*arguments)

    train_here(tiny, *options, "--train.max_steps=1")
    monkeypatch.setattr(train, "train_step", look)
    train_here(tiny, *options, "--train.max_steps=3")
    assert mapped == [0, 0]


def options_of(name: str, rank: int = 4) -> list[str]:
    options = [f"--optimizer.name={name}", "--linear.name=dense"]
    used = PRESETS[name].Config.model_fields.keys() - PRESETS[name].Config.ignored if name in PRESETS else set()
    if "update_proj_gap" in used:
        options.append(f"--optimizer.update_proj_gap={GAP}")
    if "rank" in used and name != "apollo_mini":
        options.append(f"--optimizer.rank={rank}")
    return options


@pytest.fixture
def laid_out_otherwise(monkeypatch) -> set[str]:
    """Names of state that a step left as a view or transposed: a checkpoint keeps numbers, not where they lie."""
    names: set[str] = set()
    update = OwnEngine.update

    def look(self, *arguments):
        result = update(self, *arguments)
        for name, _, tensor, _ in self.optimizer.tensors():
            if not tensor.is_contiguous() or tensor.storage_offset():
                names.add(name)
        return result

    monkeypatch.setattr(OwnEngine, "update", look)
    return names


@pytest.mark.slow
@pytest.mark.fault("F1", "F2")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_exactly(tiny, tmp_path, laid_out_otherwise, name):
    """Paused one step before a refresh, at it and after it: every tensor, loss and count of refreshes is equal."""
    options = options_of(name)
    straight, paused = tmp_path / "straight", tmp_path / "paused"
    assert train_here(tiny, *options, f"--run.dir={straight}", f"--train.max_steps={2 * GAP + 2}") == 0
    for pause in (GAP - 1, GAP, GAP + 1, 2 * GAP, 2 * GAP + 2):
        assert train_here(tiny, *options, f"--run.dir={paused}", f"--train.max_steps={pause}") == 0
    assert tensor_hashes(paused, 2 * GAP + 2) == tensor_hashes(straight, 2 * GAP + 2)
    for key in ("train/loss", "train/grad_norm", "train/grad_norm_projected", "train/refreshes"):
        assert logged(paused, key) == logged(straight, key)
    assert len(logged(paused)) == 2 * GAP + 2
    assert not laid_out_otherwise


@pytest.mark.fault("F1", "F2")
@pytest.mark.parametrize("name", ["ldadam", pytest.param("subtrack", marks=pytest.mark.slow)])
def test_a_basis_that_follows_the_gradient_is_the_same_after_every_pause(tiny, tmp_path, name):
    """A QR or an eigenvector carries the last bit of its input on; stopped after each step around a move."""
    options = options_of(name, rank=8)
    for run, pauses in {"straight": (6,), "paused": (3, 4, 5, 6)}.items():
        for pause in pauses:
            assert train_here(tiny, *options, f"--run.dir={tmp_path / run}", f"--train.max_steps={pause}") == 0
    assert tensor_hashes(tmp_path / "paused", 6) == tensor_hashes(tmp_path / "straight", 6)
