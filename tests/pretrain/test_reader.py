"""Micro-batches are read ahead: the same ones in the same order, a slow disk hidden, and no thread left behind."""

import json
import signal
import threading
import time

import pytest
import torch
from support import logged, tensor_hashes, train_here

from model.errors import UserError
from pretrain.data.dataset import TokenDataset
from pretrain.loop import train
from pretrain.loop.metrics import StepClock
from pretrain.loop.reader import MicroBatchReader

OPTIONS = ["--train.max_steps=4"]
CPU = torch.device("cpu")
READ = TokenDataset.batch


@pytest.fixture
def reads(monkeypatch):
    """(cursor, thread) of every micro-batch of training that is read."""
    found = []

    def noted(self, cursor, n):
        if self.split == "train":
            found.append((cursor, threading.current_thread().name))
        return READ(self, cursor, n)

    monkeypatch.setattr(TokenDataset, "batch", noted)
    return found


def reading_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("micro-batches")]


def test_the_order_is_that_of_the_cursor_and_nothing_is_read_twice_or_beyond_the_end(tiny, reads):
    assert train_here(tiny, *OPTIONS) == 0
    assert [cursor for cursor, _ in reads] == list(range(0, 4 * 8, 2))
    assert reads[0][1] == "MainThread"
    assert {name for _, name in reads[1:]} == {"micro-batches_0"}
    assert reading_threads() == []


def test_reading_ahead_changes_no_bit(tiny, tmp_path, monkeypatch):
    ahead, alone = tmp_path / "ahead", tmp_path / "alone"
    train_here(tiny, *OPTIONS, f"--run.dir={ahead}")
    monkeypatch.setattr(MicroBatchReader, "read", lambda self, cursor, _: self._read(cursor))
    train_here(tiny, *OPTIONS, f"--run.dir={alone}")
    assert logged(ahead) == logged(alone)
    assert tensor_hashes(ahead, 4) == tensor_hashes(alone, 4)


def test_a_stage_that_ends_reads_nothing_of_the_next(tiny, reads):
    grows = ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.5", "--schedule.total_steps=4"]
    assert train_here(tiny, *OPTIONS, *grows) == 0
    cursors = [cursor for cursor, _ in reads]
    assert sorted(cursors) == [0, *range(0, 4 * 8, 2)]  # the grown model's engine is warmed up on the first one
    assert reading_threads() == []


def test_an_error_comes_where_its_batch_is_asked_for(tiny, tmp_path, monkeypatch):
    """It is in the second step's last micro-batch that a shard is gone; the first step stands."""

    def gone(self, cursor, n):
        if cursor >= 14:
            raise UserError("the shard is gone")
        return READ(self, cursor, n)

    monkeypatch.setattr(TokenDataset, "batch", gone)
    with pytest.raises(UserError, match="the shard is gone"):
        train_here(tiny, *OPTIONS)
    assert list(logged(tmp_path / "run")) == [1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["step"], summary["error"]) == (1, "UserError: the shard is gone")
    assert reading_threads() == []


def test_a_run_that_is_stopped_before_a_batch_that_fails_ends_well(tiny, monkeypatch):
    step = train.train_step

    def gone(self, cursor, n):
        if cursor >= 8:
            raise UserError("the shard is gone")
        return READ(self, cursor, n)

    def stopped(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(TokenDataset, "batch", gone)
    monkeypatch.setattr(train, "train_step", stopped)
    assert train_here(tiny, *OPTIONS) == 143
    assert reading_threads() == []


SLOW_S = 0.05


class SlowDataset:
    """Takes its time for every batch, which holds its cursor."""

    def batch(self, cursor, n):
        time.sleep(SLOW_S)
        return torch.tensor([cursor] * n), torch.tensor([cursor] * n)


def test_a_slow_disk_is_hidden_behind_computation():
    """Of six reads the first alone is waited for, when computing takes longer than reading."""
    reader = MicroBatchReader(SlowDataset(), 1, CPU)
    for cursor in range(6):
        tokens, _ = reader.read(cursor, cursor + 1 if cursor < 5 else None)
        assert tokens.tolist() == [cursor]
        time.sleep(2 * SLOW_S)
    reader.close()
    assert SLOW_S <= reader.waited < 4 * SLOW_S
    assert reading_threads() == []


def test_another_batch_than_the_one_announced_is_read_all_the_same():
    reader = MicroBatchReader(SlowDataset(), 2, CPU)
    assert reader.read(0, 1)[0].tolist() == [0, 0]
    assert reader.read(7, None)[0].tolist() == [7, 7]
    reader.close()
    reader.close()
    assert reading_threads() == []


def test_waiting_for_data_is_logged_and_told_where_it_is_much(tiny, tmp_path, monkeypatch, capsys):
    def slow(self, cursor, n):
        time.sleep(SLOW_S)
        return READ(self, cursor, n)

    monkeypatch.setattr(TokenDataset, "batch", slow)
    train_here(tiny, *OPTIONS)
    shares = [float(share) for share in logged(tmp_path / "run", "perf/data_wait").values()]
    assert len(shares) == 4
    assert all(0.03 < share <= 1 for share in shares)
    assert capsys.readouterr().out.count("  waits for data ") == 4


def test_the_share_is_of_the_newest_step():
    clock = StepClock()
    clock.add(2.0, 100, 1.5)
    assert clock.last_data_wait == 0.75
    clock.add(2.0, 100)
    assert clock.last_data_wait == 0.0


def test_a_step_line_leaves_a_short_wait_out():
    figures = {"train/loss": 1.0, "train/lr": 0.1, "train/grad_norm": 1.0, "perf/tokens_per_s": 1.0}
    figures |= {"perf/step_ms_p50": 1.0, "perf/step_ms_p99": 1.0, "mem/peak_resident_gib": 1.0}
    assert "waits" not in train._line(figures | {"perf/data_wait": 0.02})
    assert "  waits for data 40%" in train._line(figures | {"perf/data_wait": 0.4})
