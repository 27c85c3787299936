"""`sparlow bench train`: timings as ratios against a peer, in one run."""

import argparse

EXAMPLE = "sparlow bench train configs/quickstart.toml --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.usage = "sparlow bench train [CONFIG.toml] [--section.key=value ...] [--turns N] [--steps N] [--json]"
    parser.add_argument("what", choices=("train",), help="train: the whole step against transformers + fused AdamW")
    parser.add_argument("config", nargs="?", default="configs/quickstart.toml", metavar="CONFIG.toml")
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="slices per contestant (default 7)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps per slice (default 3)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    import importlib.util
    import json

    from model.errors import UserError
    from pretrain.bench.train import bench_train
    from pretrain.config import load_config

    if importlib.util.find_spec("transformers") is None:
        raise UserError("bench train needs its peer: pip install transformers -c constraints.txt")
    if args.turns < 1 or args.steps < 1:
        raise UserError("--turns and --steps must be at least 1")
    config = load_config(args.config, args.overrides)
    rows = bench_train(args.config, args.overrides, config, args.turns, args.steps)
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
