"""`sparlow train CONFIG.toml [--from CKPT] [--section.key=value …]`."""

import argparse
import os

EXAMPLE = "sparlow train configs/quickstart.toml --train.max_steps=100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.usage = (
        "sparlow train CONFIG.toml [--section.key=value ...] [--from CKPT [--from-state weights|all]] [--print-config]"
    )
    parser.add_argument("config", metavar="CONFIG.toml", nargs="?", help="configs/ holds the shipped ones")
    parser.add_argument(
        "--from",
        dest="start",
        metavar="CKPT",
        help="begin a new run (--run.dir=NEW) with the checkpoint of another: a run folder (its newest) or a step's",
    )
    parser.add_argument(
        "--from-state",
        choices=("weights", "all"),
        help="weights: with a fresh optimizer (default). all: with its moments. Steps and schedule begin at 0",
    )
    parser.add_argument("--print-config", action="store_true", help="print the full, documented configuration and stop")


def run(args: argparse.Namespace) -> int:
    from model.errors import UserError
    from pretrain.config import load_config
    from pretrain.config.write import to_toml

    if args.config is None and not args.print_config:
        raise UserError("CONFIG.toml is missing; for example configs/quickstart.toml")
    if args.from_state and args.start is None:
        raise UserError("--from-state has no effect without --from; name a checkpoint with --from CKPT")
    config = load_config(args.config, args.overrides)
    if args.print_config:
        print(to_toml(config, comments=True), end="")
        return 0

    from pretrain.loop.origin import Start
    from pretrain.loop.train import train
    from pretrain.machine import distributed, memory

    memory.keep_freed_memory()
    memory.gpu_cap()  # a wrong one is said once, before there are ranks
    if config.train.expandable_segments:
        memory.expand_segments()
    if config.train.deterministic:  # cuBLAS reads this at its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with distributed.processes(60 * config.parallel.timeout_minutes) as world:
        memory.hold_to_cap(world.device)
        return train(config, world, Start(args.start, args.from_state or "weights") if args.start is not None else None)
