"""`sparlow plan CONFIG.toml`: what a run would be, without running it."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.machine.gpus import Gpu

EXAMPLE = "sparlow plan configs/llama_1b_sltrain.toml --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.usage = "sparlow plan CONFIG.toml [--section.key=value ...] [--world-size N] [--gpu-memory SIZE]"
    parser.usage += " [--gpu NAME|all] [--gpu-tflops T] [--mfu F] [--json]"
    parser.add_argument("config", metavar="CONFIG.toml", help="configs/ holds the shipped ones")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="number of processes (default 1)")
    parser.add_argument("--gpu", metavar="NAME", help="e.g. 'RTX 4090': its memory and peak; all: every known card")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="of one GPU, e.g. 24GiB: how to make it fit")
    parser.add_argument(
        "--gpu-tflops", type=float, metavar="T", help="peak of a GPU in bf16, e.g. 165: how long it takes"
    )
    parser.add_argument("--mfu", type=float, metavar="F", help="part of the peak that is reached (default 0.4)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.errors import UserError
    from pretrain.config import load_config
    from pretrain.growth.describe import describe_stages
    from pretrain.machine.gpus import by_name
    from pretrain.memory_plan.cards import parse_memory
    from pretrain.memory_plan.describe import describe_changes, describe_memory
    from pretrain.memory_plan.transfers import describe_transfers
    from pretrain.plan import MFU, describe_kernels, parse_speed, plan

    if args.world_size < 1:
        raise UserError(f"--world-size {args.world_size}: must be at least 1")
    if args.gpu == "all":
        return _every_card(args)
    gpu = None if args.gpu is None else by_name(args.gpu)
    card = parse_memory(args.gpu_memory) if args.gpu_memory else gpu.memory_bytes if gpu else 0
    tflops = args.gpu_tflops if args.gpu_tflops is not None or gpu is None else gpu.tflops
    speed = parse_speed(tflops, args.mfu)
    config = load_config(args.config, args.overrides)
    if gpu and not gpu.rates[config.train.products]:
        raise UserError(f'{gpu.label} has no FP8 products; set train.products = "int8", or leave out --gpu')
    figures = plan(config, args.world_size, card, speed, gpu)
    figures |= {"gpu": gpu.label if gpu else None, "assumed_mfu": (args.mfu or MFU) if speed else None}
    if args.json:
        print(json.dumps(figures, indent=1))
        return 0
    parameters = figures["parameters"]
    print(f"parameters        {parameters['total']:>22,}  ({parameters['total'] / 1e6:.2f} M)")
    print(f"  trainable       {parameters['trainable']:>22,}")
    print(f"  as dense        {parameters['dense_equivalent']:>22,}")
    print(f"tokens per update {figures['tokens_per_update']:>22,}  ({figures['micro_steps_per_update']} micro-steps)")
    print(f"updates           {figures['steps']:>22,}")
    most = "  (at most: a row holds one document, padding is not counted)" if figures["tokens_at_most"] else ""
    print(f"tokens            {figures['tokens']:>22,}{most}")
    for name, source in figures["sources"].items():
        epochs = "no corpus there yet" if source["epochs"] is None else f"{source['epochs']:.2f} epochs"
        print(f"  of {name:<12} {source['tokens']:>22,}  ({source['share']:.1%}, {epochs})")
    print(f"training FLOPs    {figures['flops']:>22.3e}  (as dense {figures['flops_dense_equivalent']:.3e})")
    print(f"  per token       {figures['flops_per_token']:>22.3e}  ({figures['flops_over_dense']:.3f} times as dense)")
    for line in describe_kernels(figures["kernels"], card):
        print(line)
    if gpu:
        print(f"GPU               {gpu}")
    if speed:
        assumed = f"{100 * (args.mfu or MFU):g} % of the peak assumed: {speed / 1e12:g} TFLOP/s on each GPU"
        for line in _eight_bit(config.train.products, figures, gpu):
            print(line)
        print(f"tokens/s          {figures['modelled_tokens_per_second']:>22,.0f}  (modelled, not measured: {assumed})")
        print(f"time              {figures['seconds'] / 86400:>22.2f}  days (modelled)")
        for line in describe_transfers(figures["transfers"]):
            print(line)
    for line in describe_stages(config, [stage["flops"] for stage in figures["stages"]]):
        print(line)
    for line in describe_memory(config, figures):
        print(line)
    for line in describe_changes(config, args.world_size, card, figures) if card else ():
        print(line)
    return 0


def _eight_bit(products: str, figures: dict[str, Any], gpu: "Gpu | None") -> Iterator[str]:
    """A line on what is multiplied in eight bits, and how fast that is taken to be; none without."""
    from pretrain.plan import EIGHT_BIT_RATE

    if figures["flops_eight_bit"]:
        part = figures["flops_eight_bit"] / figures["flops"]
        how = f"at {EIGHT_BIT_RATE} times, assumed; quantising not counted"
        if gpu:
            how = f"at {gpu.rates[products]} times, by its data sheet; quantising at the memory's bandwidth"
        yield f"  in {products:<14}{part:>22.1%}  ({how})"


def _every_card(args: argparse.Namespace) -> int:
    import json

    from model.errors import UserError
    from pretrain.config import load_config
    from pretrain.plan_cards import describe_cards, plan_cards

    if args.gpu_memory or args.gpu_tflops is not None:
        raise UserError("--gpu all takes memory and peak of every card: leave out --gpu-memory and --gpu-tflops")
    rows = plan_cards(load_config(args.config, args.overrides), args.world_size, args.mfu)
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    for line in describe_cards(rows, args.world_size, args.mfu):
        print(line)
    return 0
