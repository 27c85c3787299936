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
    kernels = what.add_parser("kernels", help="each operation against its peers' algorithm", allow_abbrev=False)
    kernels.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    kernels.add_argument(
        "--dtype",
        nargs="+",
        action="extend",
        choices=("fp32", "bf16"),
        help="default: bf16 on a GPU; both on a CPU that has bf16",
    )
    kernels.add_argument("--only", nargs="+", action="extend", metavar="OP", help="these operations, by name")
    kernels.add_argument(
        "--store", action="store_true", help="keep the rows as this device's, with times of what can be chosen from"
    )
    optimizers = what.add_parser("optimizers", help="each method's step against its release", allow_abbrev=False)
    optimizers.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    optimizers.add_argument("--size", choices=("60m", "1b", "7b"), default="60m", help="shipped shape (default 60m)")
    optimizers.add_argument(
        "--dtype",
        nargs="+",
        action="extend",
        choices=("fp32", "bf16"),
        help="of products; default: both where there is bf16",
    )
    for parser in (train, kernels, optimizers):
        parser.add_argument("--turns", type=int, default=7, metavar="N", help="slices per contestant (default 7)")
        parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    return {"train": _run_train, "kernels": _run_kernels, "optimizers": _run_optimizers}[args.what](args)


def _run_train(args: argparse.Namespace) -> int:
    import importlib.util
    import json

    from model.errors import UserError
    from pretrain.bench.train import bench_train
    from pretrain.config import load_config

    if importlib.util.find_spec("transformers") is None:
        raise UserError("bench train needs its peer: pip install transformers -c constraints.txt")
    if args.turns < 1 or args.steps < 1:
        raise UserError("--turns and --steps must be at least 1")
    overrides = [*args.overrides, "--growth.enabled=false"]  # what is timed is the model that a run ends with
    config = load_config(args.config, overrides)
    rows = bench_train(args.config, overrides, config, args.turns, args.steps)
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{rows[0]['shape']} on {rows[0]['device']}")
    for row in rows:
        print(
            f"{row['name']:14} {row['ours_ms']:9.1f} ms   {row['reference']:40} {row['reference_ms']:9.1f} ms   "
            f"ratio {row['ratio']:.2f} ({1 / row['ratio']:.2f}x the peer's tokens/s)"
        )
    return 0


def _run_optimizers(args: argparse.Namespace) -> int:
    import json

    from pretrain.bench.optimizers import bench_optimizers
    from pretrain.machine.hardware import has_bf16

    device = _device(args)
    dtypes = args.dtype or (["fp32", "bf16"] if has_bf16(device) else ["fp32"])
    rows = bench_optimizers(device, args.size, dtypes, args.turns, lambda line: print(line, file=sys.stderr))
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"on {rows[0]['device']}; a ratio below 1 means that ours is faster")
    _print_table(rows)
    return 0


def _device(args: argparse.Namespace) -> "torch.device":
    """What --device asks for; --turns is checked too."""
    import torch

    from model.errors import UserError

    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        raise UserError("--device cuda: torch finds no GPU on this machine; see sparlow doctor")
    if args.turns < 1:
        raise UserError("--turns must be at least 1")
    return torch.device(args.device or ("cuda" if has_gpu else "cpu"))


def _run_kernels(args: argparse.Namespace) -> int:
    import json

    import torch

    from kernels import measured
    from model.errors import UserError
    from pretrain.bench.environment import environment
    from pretrain.bench.kernels.run import CASES, bench_alternatives, bench_kernels
    from pretrain.machine.files import replace_text
    from pretrain.machine.hardware import has_bf16

    device = _device(args)
    if unknown := [op for op in args.only or () if op not in CASES]:
        raise UserError(f"--only {unknown[0]}: there is no such operation; choose from {', '.join(CASES)}")
    if args.store and args.only:
        raise UserError("--store replaces all measurements of this device, so it does not go with --only")
    both = ["fp32", "bf16"] if has_bf16(device) else ["fp32"]
    dtypes = args.dtype or (["bf16"] if device.type == "cuda" else both)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    rows = bench_kernels(device, dtypes, args.only or CASES, args.turns, say)
    if args.store:
        stored = {"rows": rows, "alternatives": bench_alternatives(device, dtypes, args.turns, say)}
        path = measured.path_for(device)
        replace_text(path, json.dumps(environment(device) | stored, indent=1) + "\n")
        say(f"written to {path}")
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"on {rows[0]['device']}; a ratio below 1 means that ours is faster")
    _print_table(rows)
    if not torch.cuda.is_available():
        print("There is no GPU here; on a machine with one, sparlow bench kernels --device cuda measures its ratios.")
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
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
