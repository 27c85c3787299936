"""The line that says how far `prepare` is: rate and time left, of what this run has done itself."""

from types import SimpleNamespace

import pytest

from pretrain.data.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("pretrain.data.progress.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_a_run_that_goes_on_has_its_own_rate(clock, capsys):
    with Progress("encoding", total=10_000_000, begun=4_000_000) as progress:
        clock.seconds = 20.0
        progress.advance(2_000_000)
        clock.seconds = 60.0
        progress.advance(4_000_000)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "encoding 6.0 of 10.0 MB, 0.1 MB/s, 20.0 s, 40 s left"
    assert last == "encoding 10.0 of 10.0 MB, 0.1 MB/s, 60.0 s"


def test_an_expected_total_gives_the_time_left_and_is_not_said_at_the_end(clock, capsys):
    with Progress("encoding") as progress:
        progress.expect(8_000_000)
        clock.seconds = 20.0
        progress.advance(2_000_000)
        clock.seconds = 70.0
        progress.advance(5_000_000)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "encoding 2.0 of 8.0 MB, 0.1 MB/s, 20.0 s, 60 s left"
    assert last == "encoding 7.0 MB, 0.1 MB/s, 70.0 s"
