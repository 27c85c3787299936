"""The benchmark of the kernels: what it compares does the same work, and how a ratio comes about."""

import json

import pytest
import torch
from kernel_repeats import count_different

from kernels import measured
from kernels.sparse_low_rank_linear.reference import sparse_low_rank_linear as reference
from pretrain.bench import timing
from pretrain.bench.kernels import linears, paper
from pretrain.bench.kernels.inputs import Inputs, Projection
from pretrain.bench.kernels.run import ALTERNATIVES, CASES
from pretrain.bench.timing import (
    Alternatives,
    Case,
    Clock,
    CpuClock,
    CudaClock,
    measure,
    measure_alternatives,
    take_turns,
)

CPU = torch.device("cpu")
SMALL = Projection(40, 24, 4, 0.1)


class FakeClock(Clock):
    """Work returns the seconds that it takes, times a factor that drifts from turn to turn."""

    slice_seconds = 1.0
    bandwidth = 1e6

    def __init__(self, drift=lambda slices: 1.0):
        super().__init__(CPU)
        self.calls: list[tuple[object, int, bool]] = []
        self._drift = drift

    def seconds(self, work, calls, cold):
        self.calls.append((work, calls, cold))
        return work() * self._drift(len(self.calls))


def case(ours=0.2, floor_bytes=0, **peers) -> Case:
    return Case(
        "op", "2x2", torch.bfloat16, lambda: ours, {name: lambda s=s: s for name, s in peers.items()}, floor_bytes
    )


def test_a_row_per_peer():
    fast, slow = measure(case(fast=0.1, slow=0.4, floor_bytes=100_000), FakeClock(), turns=3)
    assert (fast["name"], fast["shape"], fast["dtype"]) == ("op", "2x2", "bf16")
    assert (fast["reference"], slow["reference"]) == ("fast", "slow")
    assert (fast["ratio"], slow["ratio"]) == (pytest.approx(2), pytest.approx(0.5))
    assert fast["ours_ms"] == pytest.approx(200)
    assert slow["reference_ms"] == pytest.approx(400)
    assert fast["floor_fraction"] == pytest.approx(0.1 / 0.2)
    assert "floor_fraction" not in measure(case(peer=0.1), FakeClock(), turns=1)[0]


def test_a_drifting_machine_leaves_the_ratio():
    clock = FakeClock(drift=lambda slices: 1 + 0.01 * slices)
    (row,) = measure(case(ours=0.2, peer=0.1), clock, turns=9)
    assert row["ratio"] == pytest.approx(2, rel=0.01)


def test_contestants_take_turns_in_slices_that_are_long_enough():
    clock = FakeClock()
    ways = {"a": lambda: 0.3, "b": lambda: 2.0}
    seconds = take_turns(ways, clock, turns=4, cold=True)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4}
    slices = [(next(name for name, way in ways.items() if way is work), calls) for work, calls, _ in clock.calls[-8:]]
    assert slices == [("a", 4), ("b", 1), ("b", 1), ("a", 4)] * 2
    assert all(cold for *_, cold in clock.calls)


def test_a_slice_on_a_cpu_is_timed_per_call():
    clock, done = CpuClock(CPU), []
    assert 0 <= clock.seconds(lambda: done.append(1), 50, cold=False) < 1e-3
    assert len(done) == 50


def test_a_slice_on_a_gpu_is_timed_by_events(monkeypatch):
    """With events that read a counter of the work done; what is flushed must not count, nor be forgotten."""
    done, flushed = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(done)

        def elapsed_time(self, end):
            return 5.0 * (end.at - self.at)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(CudaClock, "_measure_bandwidth", lambda self: 1e12)
    monkeypatch.setattr(timing, "FLUSH_BYTES", 16)
    clock = CudaClock(CPU)
    zero_ = torch.Tensor.zero_
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: flushed.append(len(done)) or zero_(tensor))
    assert clock.seconds(lambda: done.append(1), 4, cold=True) == pytest.approx(5e-3)
    assert flushed == [0, 1, 2, 3]
    assert clock.seconds(lambda: done.append(1), 4, cold=False) == pytest.approx(5e-3)
    assert flushed == [0, 1, 2, 3, 4]
    assert len(done) == 8


def test_alternatives_are_what_choices_read(tmp_path, monkeypatch):
    ways = {"slow": lambda: 0.2, "fast": lambda: 0.1}
    row = measure_alternatives(Alternatives("op", (8, 4), torch.float32, ways), FakeClock(), turns=1)
    assert row == {"op": "op", "dtype": "float32", "sizes": [8, 4], "ms": pytest.approx({"slow": 200, "fast": 100})}
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    measured._alternatives.cache_clear()
    try:
        assert measured.fastest("op", CPU, torch.float32, (8, 4), "slow") == "slow"
        assert measured.load(CPU) is None
        measured.path_for(CPU).write_text(json.dumps({"alternatives": [row]}))
        measured._alternatives.cache_clear()
        assert measured.fastest("op", CPU, torch.float32, (9, 4), "slow") == "fast"
        assert measured.fastest("op", CPU, torch.float32, (9, 0), "slow") == "fast"  # e.g. no tokens
    finally:
        measured._alternatives.cache_clear()


def test_measurements_are_kept_by_device(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    monkeypatch.setattr(measured, "device_name", lambda device: "AMD EPYC 9554 (64-Core)")
    monkeypatch.setattr(measured.os, "cpu_count", lambda: 64)
    assert measured.device_slug(CPU) == "cpu-amd-epyc-9554-64-core-64-cores"
    monkeypatch.setattr(measured, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert measured.device_slug(torch.device("cuda")) == "nvidia-h100-80gb-hbm3"
    path = measured.path_for(CPU)
    path.write_text(json.dumps({"rows": [{"name": "op"}], "alternatives": []}))
    stored = measured.load(CPU)
    assert stored is not None
    assert stored["rows"] == [{"name": "op"}]
    for damaged in ("{", "[]", json.dumps({"rows": []})):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="delete it or run sparlow bench kernels --store"):
            measured.load(CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_bit_is_a_difference(dtype):
    results = iter([0.0, 0.0, -0.0, 0.0, 1.0])
    assert count_different(lambda: [torch.zeros(3, dtype=dtype), torch.full((2,), next(results), dtype=dtype)], 4) == 2
    assert count_different(lambda: [torch.full((2,), float("nan"), dtype=dtype)], 2) == 0


@pytest.mark.parametrize("op", CASES)
def test_every_operation_has_cases_that_run_on_a_cpu(op):
    found = next(CASES[op](CPU, torch.float32))
    found.ours()
    assert found.peers
    for peer in found.peers.values():
        peer()


@pytest.mark.parametrize("index", range(len(ALTERNATIVES)))
def test_every_alternative_runs(index):
    for found in ALTERNATIVES[index](CPU, torch.float32):
        assert len(found.ways) > 1
        for way in found.ways.values():
            way()
        break


def test_the_peer_is_the_same_linear():
    inputs = Inputs(CPU, torch.float64)
    A, B, values, support = inputs.factors(SMALL)
    x, grad_y = inputs.normal(7, SMALL.n_in), inputs.normal(7, SMALL.n_out)
    leaves = [tensor.requires_grad_() for tensor in (x, A, B, values)]
    ours = reference(*leaves, support.flat(), SMALL.scale)
    theirs = paper.linear(*leaves, support.flat().long(), SMALL.scale)
    torch.testing.assert_close(theirs, ours)
    expected = torch.autograd.grad(ours, leaves, grad_y)
    for found, grad in zip(torch.autograd.grad(theirs, leaves, grad_y), expected, strict=True):
        torch.testing.assert_close(found, grad)


@pytest.mark.parametrize("name", linears.choices(CPU, torch.float32))
def test_every_choice_of_the_layer_ends_a_step_with_the_gradients_of_its_peer(name):
    """So the benchmark compares the same work, micro-steps included, on every call."""
    choice = linears.choices(CPU, torch.float32)[name]
    layer = linears._SparseLinear(Inputs(CPU, torch.float32), SMALL, tokens=7)
    micro_steps = linears._micro_steps(choice)
    layer.published(micro_steps)()
    tensors = (layer.x, layer.A, layer.B, layer.values)
    expected = [tensor.grad for tensor in tensors]
    ours = layer.ours(choice)
    for _ in range(2):
        ours()
        for tensor, grad in zip(tensors, expected, strict=True):
            torch.testing.assert_close(tensor.grad, grad, rtol=1e-4, atol=1e-4)
    assert layer.weight.grad is None
    layer.dense(micro_steps)()
    assert layer.A.grad is None
    torch.testing.assert_close(layer.weight.grad, micro_steps * layer.grad_y.t() @ layer.x, rtol=1e-4, atol=1e-4)
