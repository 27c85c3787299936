"""Inputs of recomputed blocks in host memory: no number changes, and copies, waits and frees come in order."""

import gc
import weakref
from typing import Any

import pytest
import torch
from linears import small_config
from torch import Tensor

from model.build import build_model
from model.config import ModelConfig
from model.errors import UserError
from model.linear import LINEARS, Dense, SparseLowRank
from model.offload import CudaLane, Offload
from model.transformer import Transformer

CONFIG = ModelConfig(dim=24, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=37, vocab_size=50, max_seq_len=16)
SPARSE = SparseLowRank.Config(rank=4, density=0.1)


def build(linear=SPARSE, dtype=torch.float32, every=1, offload=True, **changes) -> Transformer:
    config = CONFIG.model_copy(update=changes)
    options = {"param_dtype": torch.float32, "compute_dtype": dtype, "checkpoint_every": every, "offload": offload}
    model = build_model(config, linear, seed=0, device="cpu", **options)
    with torch.no_grad():  # B starts at zero; a trained model's does not
        for name, p in model.named_parameters():
            if not p.any():
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(number))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class SlowLane:
    """Copies arrive when they are waited for, no earlier; until then the memory that they go to holds nothing."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.names: dict[int, str] = {}
        self.open = 0

    def host(self, like: Tensor) -> Tensor:
        buffer = torch.full_like(like, torch.nan)
        self.names[buffer.data_ptr()] = chr(ord("A") + len(self.names))
        return buffer

    def copy(self, target: Tensor, source: Tensor) -> Any:
        assert target.data_ptr() != source.data_ptr()
        out = target.data_ptr() in self.names
        word = f"{'out' if out else 'back'} {self.names[(target if out else source).data_ptr()]}"
        self.log.append(word)
        self.open += 1
        alive, value = weakref.ref(source.untyped_storage()), source.clone()
        target.fill_(torch.nan)
        return word, target, alive, value

    def wait(self, copied: Any) -> None:
        word, target, alive, value = copied
        assert alive() is not None, f"{word}: its source was freed before the copy was done"
        target.copy_(value)
        self.log.append(f"{word} done")
        self.open -= 1


def watched(model: Transformer, lane: SlowLane) -> None:
    """Let the lane's log say when each part of a block computes."""
    for i, layer in enumerate(model.layers):
        for name, part in (("attention", layer.attention), ("feed", layer.feed_forward)):
            part.register_forward_pre_hook(lambda *_, word=f"{name} {i}": lane.log.append(word))


@pytest.mark.parametrize("every", [1, 2, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(LINEARS))
def test_no_number_changes(kind, dtype, every):
    plain, moved = (build(small_config(kind), dtype, every, offload, ffn_dim=40) for offload in (False, True))
    assert moved.offload is not None
    lane = moved.offload.lane = SlowLane()
    for number in range(3):  # gradients add up over micro-steps
        losses = [model(*batch(number)) for model in (plain, moved)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        assert equal(gradients(plain), gradients(moved))
    recomputed = len(range(0, 4, every))
    assert len(lane.names) == 2 * recomputed - 1, "one buffer for each input but the last, used again and again"
    assert lane.open == 0


def test_the_order_of_copies_waits_and_computation():
    """Each input goes out while its part computes and is let go of then; each comes back one part ahead."""
    model = build(n_layers=2)
    lane = model.offload.lane = SlowLane()
    watched(model, lane)
    loss = model(*batch())
    forward = ["out A", "attention 0", "out A done", "out B", "feed 0", "out B done"]
    assert lane.log == [*forward, "out C", "attention 1", "out C done", "feed 1"]
    lane.log.clear()
    loss.backward()
    backward = ["back C", "feed 1", "back C done", "back B", "attention 1", "back B done", "back A", "feed 0"]
    assert lane.log == [*backward, "back A done", "attention 0"]


def test_blocks_that_are_not_recomputed_move_nothing():
    model = build(every=2)
    lane = model.offload.lane = SlowLane()
    watched(model, lane)
    model(*batch()).backward()
    assert [word for word in lane.log if "attention" in word] == [f"attention {i}" for i in (0, 1, 2, 3, 2, 0)]
    moved = [word for word in lane.log if word.startswith(("out", "back")) and "done" not in word]
    assert moved == ["out A", "out B", "out C", "back C", "back B", "back A"]


def test_only_the_residual_stream_moves():
    model = build()
    model.offload.lane = SlowLane()
    model(*batch()).backward()
    assert {shape for shape, _ in model.offload.free} == {(2, 11, 24)}
    assert sum(map(len, model.offload.free.values())) == 7


def test_a_cpu_copies_into_memory_of_its_own():
    model = build(Dense.Config())
    loss = model(*batch())
    held = [kept for kept in gc.get_objects() if type(kept).__name__ == "Kept" and kept.free is model.offload.free]
    assert len(held) == 8
    assert sorted(kept.x is None for kept in held) == [False] + [True] * 7
    with torch.no_grad():
        for kept in held:
            if kept.buffer is not None:
                kept.buffer.fill_(torch.nan)
    del held
    loss.backward()
    assert model.layers[0].attention.q_proj.weight.grad.isnan().all(), "the buffers are what the backward pass reads"


def test_buffers_need_no_collection_to_come_free():
    model = build()
    lane = model.offload.lane = SlowLane()
    gc.disable()
    try:
        for number in range(4):
            model(*batch(number)).backward()
        model(*batch())  # and nobody asks for its gradients
        model(*batch()).backward()
    finally:
        gc.enable()
    assert len(lane.names) == 7


def test_two_forward_passes_before_a_backward_pass_have_buffers_of_their_own():
    plain, moved = build(offload=False), build()
    moved.offload.lane = SlowLane()
    for model in (plain, moved):
        one, other = model(*batch(0)), model(*batch(1))
        one.backward()
        other.backward()
    assert equal(gradients(plain), gradients(moved))


def test_a_graph_may_be_gone_through_twice():
    plain, moved = build(offload=False), build()
    moved.offload.lane = SlowLane()
    for model in (plain, moved):
        loss = model(*batch())
        loss.backward(retain_graph=True)
        loss.backward()
    assert equal(gradients(plain), gradients(moved))


def test_a_backward_pass_that_stops_halfway_leaves_no_copy_on_its_way():
    """What has been fetched ahead is freed without having been read: not before the copy into it is done."""
    model = build()
    lane = model.offload.lane = SlowLane()
    torch.autograd.grad(model(*batch()), model.layers[2].feed_forward.down_proj.A)
    assert lane.open == 0
    model(*batch()).backward()
    assert len(lane.names) == 7


def test_without_gradients_nothing_moves():
    model = build()
    lane = model.offload.lane = SlowLane()
    expected = build(offload=False)(*batch())
    with torch.no_grad():
        assert torch.equal(model(*batch()), expected)
    model.eval()
    assert torch.equal(model(*batch()), expected)
    assert lane.log == []


class FakeStream:
    """Stands for a stream of a GPU; writes down what it is told."""

    def __init__(self, name: str, log: list[str]):
        self.name, self.log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self.log.append(f"event on {self.name}")
        return "event"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"off {self.name}")


@pytest.fixture
def cuda(monkeypatch) -> list[str]:
    """What is asked of CUDA's streams."""
    log: list[str] = []
    main = FakeStream("main", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("lane", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    return log


def test_on_a_gpu_a_copy_follows_the_computation_and_is_waited_for_by_its_event(cuda):
    lane, source, target = CudaLane(torch.device("cuda", 0)), torch.ones(3), torch.zeros(3)
    copied = lane.copy(target, source)
    assert cuda == ["lane waits for main", "on lane", "off lane", "event on lane"]
    assert torch.equal(target, source)
    lane.wait(copied)
    assert cuda[4:] == ["main waits for event"]


def test_memory_that_cannot_be_pinned_is_one_sentence(cuda, monkeypatch):
    def empty(*_: Any, pin_memory: bool = False, **__: Any) -> Tensor:
        assert pin_memory
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    x, offload = torch.ones(2, 11, 24), Offload(CudaLane(torch.device("cuda", 0)))
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(UserError, match=r"pin 0 MiB more \(CUDA error: out of memory\): set train.offload_activations"):
        offload.begin().recomputed(torch.sin, x)
