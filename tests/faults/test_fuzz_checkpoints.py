"""Files from strangers whose hashes agree: whatever is in them, one sentence or a model; no crash, no bomb.

Cases come from a plain seeded mutator: it makes and runs them several times faster than hypothesis, whose bookkeeping
costs more than a reader takes, and there is nothing to shrink where a case is one change or a few.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from faults.mutate import HUGE, STRANGE, mutated_bytes, mutated_data
from growth_runs import checkpoint
from support import train_here, write_tiny

from model.errors import UserError
from model.hf import load_folder
from model.hf.tokenizer import read_facts
from pretrain.checkpoint.manifest import BrokenCheckpoint, seal
from pretrain.checkpoint.read import Checkpoint, load_model, read_state, tokenizer_of
from pretrain.config.literals import as_toml
from pretrain.using.export import export

MOST_SECONDS = 5.0
"""CPU time that a case may take."""

MOST_BYTES = 2**31
"""Memory that a case may take."""

Case = Callable[[random.Random], object]


class Bomb(BaseException):
    """A case that takes too long."""


@contextmanager
def bounded() -> Iterator[None]:
    """Let the body take so much time and memory and no more."""

    def explode(*_: object) -> None:
        raise Bomb

    handler, limits = signal.signal(signal.SIGVTALRM, explode), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def seed() -> int:
    return int(os.environ.get("SPARLOW_TEST_SEED", "0"))


def fuzz(case: Case, cases: int, name: str) -> None:
    """Run so many cases; both a refusal and a success must have been seen where there are enough of them."""
    print(f"SPARLOW_TEST_SEED={seed()}")
    accepted, sentence = 0, ""
    with bounded():
        for number in range(cases):
            signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
            what = f"{name}, case {number} of seed {seed()}"
            try:
                case(random.Random(f"{seed()} {name} {number}"))
                accepted += 1
            except (UserError, BrokenCheckpoint) as error:
                sentence = str(error)
            except BaseException as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
            assert len(sentence) < 3000, f"{what}: a sentence of {len(sentence)} letters"
    assert accepted < cases


@pytest.fixture(scope="module")
def scratch(corpus, tmp_path_factory):
    """A checkpoint of two steps, of which the cases change one file each."""
    folder = tmp_path_factory.mktemp("fuzz")
    options = ["--train.max_steps=2", "--train.global_batch_size=2", "--optimizer.name=adamw8bit"]
    assert train_here(write_tiny(folder, corpus), *options) == 0
    return checkpoint(folder / "run", 2)


class Stranger:
    """A checkpoint in which one file is another's, with a manifest that agrees."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.fields = json.loads((folder / "manifest.json").read_bytes())
        self.manifest = (folder / "manifest.json").read_bytes()

    def opened(self, name: str, data: bytes) -> Checkpoint:
        """The checkpoint with `data` in the place of one file, which is put back after it."""
        path = self.folder / name
        whole = path.read_bytes()
        new = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        files = [new if entry["name"] == name else entry for entry in self.fields["files"]]
        try:
            path.write_bytes(data)
            (self.folder / "manifest.json").write_bytes(seal(self.fields | {"files": files}))
            found = Checkpoint(self.folder)
            if name.endswith(".safetensors"):
                load_model(found, torch.device("cpu"))
            return found
        finally:
            path.write_bytes(whole)
            (self.folder / "manifest.json").write_bytes(self.manifest)


def manifests(stranger: Stranger) -> Case:
    def case(rng: random.Random) -> object:
        kind, path = rng.randrange(3), stranger.folder / "manifest.json"
        data = json.dumps(mutated_data(rng, stranger.fields | {"format_version": rng.choice((3, 4))})).encode()
        if kind == 1:
            data = seal(mutated_data(rng, stranger.fields))
        elif kind == 2:
            data = mutated_bytes(rng, stranger.manifest)
        try:
            path.write_bytes(data)
            return Checkpoint(stranger.folder)
        finally:
            path.write_bytes(stranger.manifest)

    return case


def states(stranger: Stranger) -> Case:
    data = (stranger.folder / "state.json").read_bytes()
    fields = json.loads(data) | {
        "grown": [{"n_layers": 1, "steps": 1, "tokens": 16, "flops": 1.0, "flops_dense_equivalent": 1.0}],
        "origin": {
            **{"run": "old", "checkpoint": "step-00000003", "step": 3, "tokens_seen": 1, "state": "all"},
            **{"config_hash": "0" * 64, "manifest_sha256": "0" * 64},
        },
    }

    def case(rng: random.Random) -> object:
        changed = mutated_bytes(rng, data)
        if rng.random() < 0.8:
            changed = json.dumps(mutated_data(rng, fields, STRANGE + HUGE)).encode()
        if rng.random() < 0.8:  # in the time of one that is opened, thirty are only parsed
            return read_state(changed).this_stage(2)
        found = stranger.opened("state.json", changed)
        return found.state.this_stage(2), found.stage

    return case


def configurations(stranger: Stranger) -> Case:
    text = (stranger.folder / "config.toml").read_text()
    tables = tomllib.loads(text)

    def written(table: object) -> str:
        if isinstance(table, dict):
            return "{" + ", ".join(f"{json.dumps(str(key))} = {written(value)}" for key, value in table.items()) + "}"
        return "[" + ", ".join(map(written, table)) + "]" if isinstance(table, list) else as_toml(table)

    def case(rng: random.Random) -> object:
        changed = mutated_bytes(rng, text.encode())
        if rng.random() < 0.8:
            mutated = mutated_data(rng, tables)
            changed = "".join(f"{json.dumps(key)} = {written(value)}\n" for key, value in mutated.items()).encode()
        return stranger.opened("config.toml", changed)

    return case


def headers(stranger: Stranger) -> Case:
    whole = (stranger.folder / "tensors-00000.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def case(rng: random.Random) -> object:
        kind = rng.randrange(4)
        if kind == 0:
            data = mutated_bytes(rng, whole[: 8 + size]) + rest
        elif kind == 1:
            data = struct.pack("<Q", rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1))) + whole[8:]
        else:
            text = json.dumps(_other_tensor(rng, header) if kind == 2 else mutated_data(rng, header)).encode()
            data = struct.pack("<Q", len(text)) + text + rest
        return stranger.opened("tensors-00000.safetensors", data)

    return case


def _other_tensor(rng: random.Random, header: dict) -> dict:
    """`header` with one tensor of another type or shape that takes the same bytes, where there is one."""
    name = rng.choice(list(header))
    entry = dict(header[name])
    if rng.random() < 0.5:
        entry["dtype"] = rng.choice(("I32", "U32", "F32", "F16", "BF16", "I16", "U16", "I64", "F64", "F8_E4M3", "BOOL"))
    else:
        shape = entry.get("shape", [])
        entry["shape"] = rng.choice((shape[::-1], [*shape, 1], [1, *shape], [-1], [2**62, 0], [1] * 300, shape[:-1]))
    return header | {name: entry}


def tokenizers(stranger: Stranger) -> Case:
    whole = (stranger.folder / "tokenizer.model").read_bytes()

    def case(rng: random.Random) -> object:
        data = mutated_bytes(rng, whole) if rng.random() < 0.4 else _other_model(rng, whole)
        tokenizer = tokenizer_of(stranger.opened("tokenizer.model", data))
        tokenizer.decode(tokenizer.encode("the quick\n \u00e9\U0001f642 fox"))
        path = stranger.folder / "tokenizer.other"
        path.write_bytes(data)
        return tokenizer.token_bytes(), tokenizer.losses(), read_facts(path)

    return case


def _other_model(rng: random.Random, whole: bytes) -> bytes:
    """A SentencePiece model, whole as a message, in which a few fields are anything."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(6)
        piece = rng.choice(proto.pieces)
        if kind == 0:
            role = rng.choice(("bos_id", "eos_id", "pad_id", "unk_id"))
            setattr(proto.trainer_spec, role, rng.choice((-1, 0, 1, 5, 319, 320, 10**6, 2**31 - 1, -(2**31))))
        elif kind == 1:
            table = rng.randbytes(rng.choice((0, 1, 4, 5, 100, 1028)))
            head = rng.choice((b"", (4).to_bytes(4, "little"), (1024).to_bytes(4, "little"), b"\xff\xff\xff\xff"))
            proto.normalizer_spec.precompiled_charsmap = head + table
        elif kind == 2:
            flags = ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces")
            setattr(proto.normalizer_spec, rng.choice(flags), rng.random() < 0.5)
        elif kind == 3:
            piece.piece = rng.choice(("", "a" * 40_000, "\u2581" * 5, "<0x41>", "a b", "\0", "\u00e9"))
        elif kind == 4:
            piece.score, piece.type = rng.choice((float("nan"), float("inf"), -1e38)), rng.randrange(1, 7)
        else:
            del proto.pieces[rng.randrange(1, len(proto.pieces)) :]
    return proto.SerializeToString()


def hugging_face(stranger: Stranger) -> Case:
    folder = stranger.folder.parents[1] / "hf"
    if not folder.exists():
        export(str(stranger.folder), str(folder), dtype="fp32", overwrite=False, check=False)
    config, weights = (folder / "config.json").read_bytes(), folder / "model.safetensors"
    whole = weights.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    index = {"weight_map": dict.fromkeys(list(header)[1:], "model.safetensors")}

    def case(rng: random.Random) -> object:
        kind, name = rng.randrange(5), "config.json"
        if kind < 2:
            data = mutated_bytes(rng, config) if kind else json.dumps(mutated_data(rng, json.loads(config))).encode()
        elif kind == 2:
            name, data = "model.safetensors.index.json", json.dumps(mutated_data(rng, index, STRANGE + HUGE)).encode()
        else:
            text = json.dumps(_other_tensor(rng, header) if kind == 3 else mutated_data(rng, header)).encode()
            name, data = "model.safetensors", struct.pack("<Q", len(text)) + text + rest
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        try:
            path.write_bytes(data)
            _, tensors = load_folder(folder)
            return {name: tensor.float() for name, tensor in tensors}
        finally:
            path.unlink() if before is None else path.write_bytes(before)

    return case


READERS = {
    "manifest": (manifests, 10_000),
    "state": (states, 20_000),
    "configuration": (configurations, 8_000),
    "header": (headers, 8_000),
    "tokenizer": (tokenizers, 6_000),
    "hugging_face": (hugging_face, 10_000),
}
"""By reader, what makes its cases, and how many of them the slow suite runs."""


@pytest.mark.fault("F45")
@pytest.mark.fault("F8")
@pytest.mark.parametrize("part", [125, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", READERS)
def test_a_stranger_gets_a_sentence(scratch, tmp_path, reader, part):
    """One case in `part` of those of the slow suite."""
    folder = shutil.copytree(scratch, tmp_path / "run" / "checkpoints" / scratch.name)
    make, cases = READERS[reader]
    fuzz(make(Stranger(folder)), cases // part, reader)
