"""Copies of tensors in host memory: their order beside a GPU, that none is read before it is there, and their room."""

import hashlib
import threading

import pytest
import torch
from safetensors.torch import load_file
from support import logged, tensor_hashes, train_here

from pretrain.checkpoint import saver as saver_module
from pretrain.checkpoint.host_copies import ALIGNMENT, HostCopies, room_for
from pretrain.checkpoint.save import Draft
from pretrain.checkpoint.writing import Writing
from pretrain.machine.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


class LateQueue:
    """A GPU's stream as slow as can be: a copy is made when somebody waits for it, and has garbage in its place before.

    What the computation queues behind the copies, `then`, comes after them.
    """

    def __init__(self):
        self.queued, self.waiters = [], []

    def register(self, memory):
        return lambda: None

    def copy(self, target, source):
        target.reshape(-1).view(torch.uint8).fill_(255)
        self.queued.append(lambda: target.copy_(source))

    def then(self, work):
        self.queued.append(work)

    def mark(self):
        return self.wait

    def wait(self):
        self.waiters.append(threading.current_thread().name)
        for work in self.queued:
            work()
        self.queued.clear()


def reserve(copies, *tensors):
    copies.reserve(sum(room_for(tensor.nbytes) for tensor in tensors))


def test_the_thread_reads_when_all_copies_are_there(tmp_path, monkeypatch):
    queue, folder = LateQueue(), tmp_path / "step-00000001.tmp.1"
    folder.mkdir()
    copies, ended = HostCopies(ALONE.device, queue), []
    weight, count = torch.randn(3, 5), torch.tensor(7)
    expected = weight.clone()
    reserve(copies, weight, count)
    copies.take(0, "weight", weight)
    copies.take(0, "count", count)
    fields = dict.fromkeys(("format_version", "step", "tokens_seen", "world_size"), 1)
    fields |= {"config_hash": "", "data_fingerprint": "", "support_layouts": {}}
    draft = Draft(folder, tmp_path / "step-00000001", 1, {}, fields)
    queue.then(lambda: weight.zero_())  # the next update, as the host queues it before anything is copied
    thread = Writing(ALONE, draft, copies, ended.append)
    thread.join()
    assert (thread.failed, ended, queue.waiters) == (None, [None], ["checkpoint"])
    read = load_file(tmp_path / "step-00000001" / "tensors-00000.safetensors")
    assert torch.equal(read["weight"], expected)
    assert read["count"] == 7


def test_a_run_beside_a_late_device_saves_the_same(tiny, tmp_path, monkeypatch):
    """Each save waits for the one before, whose copies it overwrites: even one whose copies are as late as can be.

    On this CPU nothing queues the updates, so training waits where a GPU's stream would come to them.
    """
    queues = []

    class Late(LateQueue):
        def mark(self):
            done, wait = threading.Event(), super().mark()
            queues[-1].append(done)
            return lambda: (wait(), done.set())

    def late(device):
        queues.append([])
        return HostCopies(device, Late())

    def saves(self, state, tensors, save=saver_module.Saver.save):
        save(self, state, tensors)
        assert queues[-1][-1].wait(60)

    options = ["--train.max_steps=4", "--checkpoint.every=1", "--checkpoint.keep=9"]
    train_here(tiny, *options, f"--run.dir={tmp_path}/front", "--checkpoint.background=false")
    monkeypatch.setattr(saver_module, "HostCopies", late)
    monkeypatch.setattr(saver_module.Saver, "save", saves)
    train_here(tiny, *options, f"--run.dir={tmp_path}/late")
    assert len(queues[0]) == 5  # and one before the memory is given back
    assert logged(tmp_path / "late") == logged(tmp_path / "front")
    for step in range(1, 5):
        assert tensor_hashes(tmp_path / "late", step) == tensor_hashes(tmp_path / "front", step)


def test_memory_is_taken_once_and_grows_when_it_must():
    copies = HostCopies(ALONE.device)
    places = []
    for numel in (100, 100, 50, 5000):
        tensor = torch.full((numel,), float(numel))
        odd = torch.ones(3, dtype=torch.int8)
        reserve(copies, odd, tensor)
        copies.take(0, "odd", odd)
        copies.take(1, "tensor", tensor)
        assert torch.equal(copies.files[1]["tensor"], tensor)
        assert torch.equal(copies.files[0]["odd"], odd)
        places.append(copies.files[1]["tensor"].data_ptr())
    assert places[0] == places[1] == places[2]
    assert places[0] % ALIGNMENT == 0
    copies.close()
    assert copies.files == {}


def test_what_was_registered_is_given_back():
    released = []

    class Registering(LateQueue):
        def register(self, memory):
            size = memory.nbytes
            return lambda: released.append(size)

    copies = HostCopies(ALONE.device, Registering())
    copies.reserve(1000)
    copies.reserve(2000)
    assert released == [1000]
    copies.close()
    copies.close()
    assert released == [1000, 2000]
    other = HostCopies(ALONE.device, Registering())
    other.reserve(64)
    del other  # an engine's end that nobody announced
    assert released == [1000, 2000, 64]


def test_a_tensor_larger_than_announced_is_an_error():
    copies = HostCopies(ALONE.device)
    copies.reserve(64)
    with pytest.raises(RuntimeError):
        copies.take(0, "large", torch.zeros(100))


def test_the_hash_in_the_manifest_is_of_the_file(tmp_path):
    from pretrain.checkpoint.tensor_file import write_tensors

    entry = write_tensors(tmp_path / "file", {"x": torch.randn(2**19 + 3)})  # in several pieces
    assert hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest() == entry.sha256
