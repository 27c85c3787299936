"""The engine of Sparlow's own optimizers watches the path that its matrices take."""

from types import SimpleNamespace

import pytest

from model.errors import RunFailed
from pretrain.engine.own import OwnEngine


def engine_of(taken: int, planned: int, applied: bool = True) -> OwnEngine:
    """An engine whose optimizer has just changed `taken` of `planned` matrices."""
    engine = object.__new__(OwnEngine)
    engine.deepspeed, engine.caches = SimpleNamespace(step=lambda: None), []
    engine.merging, engine.updates, engine.seed, engine.world = [], 0, 0, None
    engine.optimizer = SimpleNamespace(
        applied=applied, partly_applied=False, grad_norm=1.0, full_gradient_bytes=lambda: 8
    )
    engine.optimizer.low_rank_matrices, engine.optimizer.planned_matrices = taken, planned
    return engine


@pytest.mark.parametrize(("taken", "planned"), [(1, 2), (3, 2)])
@pytest.mark.fault("F26")
def test_a_matrix_off_its_path_ends_the_run(taken, planned):
    with pytest.raises(RunFailed, match=f"{taken} matrices took the low-rank path, {planned} were planned"):
        engine_of(taken, planned).update()


def test_all_on_their_path_and_a_skipped_step():
    assert engine_of(2, 2).update().applied
    assert not engine_of(0, 2, applied=False).update().applied


def test_the_optimizer_tells_what_whole_gradients_would_be():
    assert engine_of(2, 2).full_gradient_bytes() == 8
