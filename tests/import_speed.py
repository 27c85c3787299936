"""How fast `sparlow import` takes a dense bf16 folder, beside reading, hashing and writing the same bytes plainly.

    python tests/import_speed.py --parameters 1e9 --folder /tmp/speed --repeats 5

Both in turn (plain, import, plain, ...), each of files that the page cache has; the ratio is that of the medians. The
plain copy reads 1 MiB at a time, hashes it, writes it and waits for the disk: nothing that an import could leave out.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.config import ModelConfig
from model.hf.config import to_hf
from model.hf.names import dense_tensors

CHUNK = 2**20
SHARD = 2 * 10**9


def shape_of(parameters: float) -> ModelConfig:
    """Llama 3.2 1B, with as many layers as `parameters` ask for."""
    layer, ends = 60_821_504, 2 * 32_000 * 2048
    n_layers = max(1, round((parameters - ends) / layer))
    return ModelConfig(
        dim=2048, n_layers=n_layers, n_heads=32, n_kv_heads=8, ffn_dim=8192, vocab_size=32_000, max_seq_len=4096
    )


def make_folder(folder: Path, config: ModelConfig) -> int:
    """Write random weights in bf16, in shards of SHARD bytes; returns their bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_hf(config, torch.bfloat16)))
    held: dict[str, torch.Tensor] = {}
    weight_map, total, number = {}, 0, 0
    tensors = list(dense_tensors(config))
    for index, tensor in enumerate(tensors):
        held[tensor.theirs] = torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        total += held[tensor.theirs].nbytes
        if index == len(tensors) - 1 or sum(t.nbytes for t in held.values()) > SHARD:
            name = f"model-{number:05d}.safetensors"
            save_file(held, folder / name)
            weight_map |= dict.fromkeys(held, name)
            held, number = {}, number + 1
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def plain(source: Path, out: Path) -> None:
    """Read, hash and write all files of weights."""
    out.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as read, (out / path.name).open("wb") as write:
            while chunk := read.read(CHUNK):
                digest.update(chunk)
                write.write(chunk)
            write.flush()
            os.fsync(write.fileno())


def imported(source: Path, out: Path) -> None:
    from pretrain.importing.run import import_folder

    import_folder(str(source), str(out), linear={"name": "dense"}, tokenizer="none")


def seconds(work: Callable[[Path, Path], None], source: Path, out: Path) -> tuple[float, float]:
    """Wall-clock and processor seconds of `work`, whose result is removed."""
    os.sync()
    wall, cpu = time.perf_counter(), time.process_time()
    work(source, out)
    taken = time.perf_counter() - wall, time.process_time() - cpu
    shutil.rmtree(out)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/import_speed"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    source = args.folder / "hf"
    shutil.rmtree(args.folder, ignore_errors=True)
    size = make_folder(source, shape_of(args.parameters))
    taken: dict[str, list[tuple[float, float]]] = {"plain": [], "import": []}
    for repeat in range(args.repeats + 1):
        for name, work in (("plain", plain), ("import", imported)):
            found = seconds(work, source, args.folder / "out")
            if repeat:  # the first ones load the page cache and the modules
                taken[name].append(found)
    print(f"{size / 1e9:.2f} GB, medians of {args.repeats} interleaved repeats")
    wall = {name: statistics.median(found[0] for found in pairs) for name, pairs in taken.items()}
    cpu = {name: statistics.median(found[1] for found in pairs) for name, pairs in taken.items()}
    for name in taken:
        print(
            f"{name:7} {wall[name]:7.2f} s  {size / wall[name] / 1e9:5.2f} GB/s  {cpu[name]:7.2f} s of processor time"
        )
    print(
        f"rate of import / plain: {wall['plain'] / wall['import']:.2f} (processor: {cpu['plain'] / cpu['import']:.2f})"
    )
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
