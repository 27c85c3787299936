"""`sparlow bench`: timings as ratios against a peer, in one run."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXAMPLE = "sparlow bench train configs/quickstart.toml --json; sparlow bench kernels --only decompress"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="what", required=True)
    train = what.add_parser("train", help="the whole step against transformers + fused AdamW", allow_abbrev=False)
    train.set_defaults(takes_overrides=True)
    train.usage = "sparlow bench train [CONFIG.toml] [--section.key=value ...] [--turns N] [--steps N] [--json]"
    train.add_argument("config", nargs="?", default="configs/quickstart.toml", metavar="CONFIG.toml")
    train.add_argument("--steps", type=int, default=3, metavar="N", help="steps per slice (default 3)")
    sample = what.add_parser("sample", help="sampled tokens against a pass of the whole text each", allow_abbrev=False)
    sample.set_defaults(takes_overrides=True)
    sample.usage = "sparlow bench sample [CONFIG.toml] [--section.key=value ...] [--turns N] [--tokens N] [--json]"
    sample.add_argument("config", nargs="?", default="configs/quickstart.toml", metavar="CONFIG.toml")
    sample.add_argument("--tokens", type=int, default=256, metavar="N", help="new tokens per slice (default 256)")
    kernels = what.add_parser("kernels", help="each operation against its peers' algorithm", allow_abbrev=False)
    optimizers = what.add_parser("optimizers", help="each method's step against its release", allow_abbrev=False)
    prepare = what.add_parser("prepare", help="text to shards against the bare tokenizer library", allow_abbrev=False)
    prepare.add_argument("--text", nargs="+", action="extend", metavar="PATH", help="default: Python's own sources")
    prepare.add_argument(
        "--tokenizer", nargs="+", action="extend", metavar="FILE", help="default: one of each kind, trained on the text"
    )
    prepare.add_argument("--megabytes", type=float, default=55, metavar="N", help="text is repeated up to (default 55)")
    by_default = {
        kernels: "default: bf16 on a GPU; both on a CPU that has bf16",
        optimizers: "of products; default: both where there is bf16",
        sample: "default: both where there is bf16",
    }
    for parser, text in by_default.items():
        parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
        parser.add_argument("--dtype", nargs="+", action="extend", choices=("fp32", "bf16"), help=text)
    optimizers.add_argument("--size", choices=("60m", "1b", "7b"), default="60m", help="shipped shape (default 60m)")
    kernels.add_argument("--only", nargs="+", action="extend", metavar="OP", help="these operations, by name")
    kernels.add_argument(
        "--store", action="store_true", help="keep the rows as this device's, with times of what can be chosen from"
    )
    for parser in (train, sample, kernels, optimizers, prepare):
        parser.add_argument("--turns", type=int, default=7, metavar="N", help="slices per contestant (default 7)")
        parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    benchmarks = {
        "train": _time_train,
        "sample": _time_sample,
        "kernels": _time_kernels,
        "optimizers": _time_optimizers,
        "prepare": _time_prepare,
    }
    rows = benchmarks[args.what](args)
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.what == "prepare":
        for row in rows:
            print(
                f"{row['name']:28} {row['ours_mb_per_s']:7.1f} MB/s   the library alone "
                f"{row['library_mb_per_s']:7.1f} MB/s   kept {row['kept']:.2f}"
            )
    elif args.what == "train":
        print(f"{rows[0]['shape']} on {rows[0]['device']}")
        for row in rows:
            print(
                f"{row['name']:14} {row['ours_ms']:9.1f} ms   {row['reference']:40} {row['reference_ms']:9.1f} ms   "
                f"ratio {row['ratio']:.2f} ({1 / row['ratio']:.2f}x the peer's tokens/s)"
            )
    else:
        _print_table(rows, args.what)
    return 0


def _time_train(args: argparse.Namespace) -> list[dict[str, Any]]:
    import importlib.util

    from model.errors import UserError
    from pretrain.bench.train import bench_train
    from pretrain.config import load_config

    if importlib.util.find_spec("transformers") is None:
        raise UserError("bench train needs its peer: pip install transformers -c constraints.txt")
    if args.turns < 1 or args.steps < 1:
        raise UserError("--turns and --steps must be at least 1")
    overrides = [*args.overrides, "--growth.enabled=false"]  # what is timed is the model that a run ends with
    return bench_train(args.config, overrides, load_config(args.config, overrides), args.turns, args.steps)


def _time_sample(args: argparse.Namespace) -> list[dict[str, Any]]:
    from model.errors import UserError
    from pretrain.bench.sample import bench_sample
    from pretrain.config import load_config
    from pretrain.machine import memory

    device, dtypes = _device_and_dtypes(args)
    if args.tokens < 1:
        raise UserError("--tokens must be at least 1")
    memory.keep_freed_memory()
    config = load_config(args.config, [*args.overrides, "--growth.enabled=false"])  # the model that a run ends with
    return bench_sample(config, device, args.dtype or dtypes, args.turns, args.tokens, _say)


def _time_optimizers(args: argparse.Namespace) -> list[dict[str, Any]]:
    from pretrain.bench.optimizers import bench_optimizers

    device, dtypes = _device_and_dtypes(args)
    return bench_optimizers(device, args.size, args.dtype or dtypes, args.turns, _say)


def _time_prepare(args: argparse.Namespace) -> list[dict[str, Any]]:
    from pathlib import Path

    from model.errors import UserError
    from pretrain.bench.prepare import bench_prepare
    from pretrain.data.sources.stdlib import StdlibSource
    from pretrain.data.sources.text import TextSource

    if args.turns < 1 or args.megabytes <= 0:
        raise UserError("--turns must be at least 1, and --megabytes more than 0")
    source = TextSource(args.text) if args.text else StdlibSource()
    return bench_prepare(source, [Path(path) for path in args.tokenizer or ()], args.megabytes, args.turns, _say)


def _time_kernels(args: argparse.Namespace) -> list[dict[str, Any]]:
    import json

    from kernels import measured
    from model.errors import UserError
    from pretrain.bench.kernels.run import CASES, bench_alternatives, bench_kernels
    from pretrain.bench.timing import environment
    from pretrain.machine import memory
    from pretrain.machine.files import replace_text

    memory.keep_freed_memory()  # as a run does
    device, dtypes = _device_and_dtypes(args)
    if unknown := [op for op in args.only or () if op not in CASES]:
        raise UserError(f"--only {unknown[0]}: there is no such operation; choose from {', '.join(CASES)}")
    if args.store and args.only:
        raise UserError("--store replaces all measurements of this device, so it does not go with --only")
    dtypes = args.dtype or (["bf16"] if device.type == "cuda" else dtypes)
    rows = bench_kernels(device, dtypes, args.only or CASES, args.turns, _say)
    if args.store:
        stored = {"rows": rows, "alternatives": bench_alternatives(device, dtypes, args.turns, _say)}
        path = measured.path_for(device)
        replace_text(path, json.dumps(environment(device) | stored, indent=1) + "\n")
        _say(f"written to {path}")
    return rows


def _device_and_dtypes(args: argparse.Namespace) -> "tuple[torch.device, list[str]]":
    """What --device asks for, and the precisions it has; --turns is checked too."""
    import torch

    from model.errors import UserError
    from pretrain.machine.hardware import has_bf16

    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no GPU on this machine; see sparlow doctor")
    if args.turns < 1:
        raise UserError("--turns must be at least 1")
    device = torch.device(args.device or ("cuda" if has_gpu else "cpu"))
    return device, ["fp32", "bf16"] if has_bf16(device) else ["fp32"]


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print_table(rows: list[dict[str, Any]], what: str) -> None:
    import torch

    print(f"on {rows[0]['device']}; a ratio below 1 means that ours is faster")
    table = [("name", "shape", "dtype", "ours ms", "peer", "peer ms", "ratio", "of byte floor")]
    for row in rows:
        floor = f"{row['floor_fraction']:.0%}" if "floor_fraction" in row else ""
        times = f"{row['ours_ms']:.3f}", row["reference"], f"{row['reference_ms']:.3f}", f"{row['ratio']:.2f}"
        table.append((row["name"], row["shape"], row["dtype"], *times, floor))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [
            cell.rjust(width) if index in (3, 5, 6, 7) else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    if what == "kernels" and not torch.cuda.is_available():
        print("There is no GPU here; on a machine with one, sparlow bench kernels --device cuda measures its ratios.")
