"""`sparlow grow CKPT CONFIG.toml`: the offline form of `[growth]`."""

import argparse

EXAMPLE = "sparlow grow runs/small configs/llama_350m_dense.toml --run.dir=runs/grown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.usage = "sparlow grow CKPT CONFIG.toml [--section.key=value ...] [options]"
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder (its newest checkpoint) or one step's folder")
    parser.add_argument("config", metavar="CONFIG.toml", help="the run to begin: its model is larger, its run.dir new")
    parser.add_argument(
        "--operator", default="stack", metavar="NAME", help="stack, interleave, zero, source_layers, … (default stack)"
    )
    parser.add_argument("--order", default="", metavar="NAME", help="for --operator zero (default interleave)")
    parser.add_argument(
        "--source-layers", type=_layers, default=(), metavar="0,1,…", help="for --operator source_layers: one per layer"
    )
    parser.add_argument("--function-preserving", action="store_true", help="keep the small model's logits at first")
    parser.add_argument(
        "--optimizer", choices=("reset", "copy", "copy_reset_step"), default="reset", help="its state (default reset)"
    )
    parser.add_argument(
        "--width", choices=("copy", "zero"), default="copy", help="how a wider model comes about (default copy)"
    )
    parser.add_argument(
        "--share-spread",
        type=_spread,
        metavar="X",
        help="for a wider model: how unevenly copies share a weight (default 2)",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> int:
    import json
    import shlex

    from model.errors import UserError
    from model.growth.plan import GrowthOptions
    from model.growth.widening import Widening
    from model.growth.width import SHARE_SPREAD
    from pretrain.config import load_config
    from pretrain.config.stages import counted
    from pretrain.growth.offline import grow_offline

    config = load_config(args.config, args.overrides)
    options = GrowthOptions(args.order, args.source_layers, args.function_preserving)
    if args.width == "zero" and args.share_spread is not None:
        raise UserError("--share-spread has no effect with --width zero, which copies nothing; leave one of them out")
    widening = Widening(args.width, SHARE_SPREAD if args.share_spread is None else args.share_spread)
    grown = grow_offline(args.checkpoint, config, args.operator, options, args.optimizer, widening)
    if args.json:
        rows = {name: vars(row) for name, row in grown.table.rows.items()}
        figures = {"checkpoint": str(grown.folder), "layers": grown.layers, "continues_data": grown.continues_data}
        print(json.dumps({**figures, "bytes_by_group": rows}))
        return 0
    print(f"{grown.folder}: {counted(grown.layers[0], 'layer')} grown to {grown.layers[1]}")
    for line in grown.table.lines():
        print(f"  {line}")
    if not grown.continues_data:
        print("the data or its order is another than the small model's: the new run begins at its start")
    print(f"go on with: sparlow train {shlex.join([args.config, *args.overrides])}")
    return 0


def _spread(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no spread; give a number from 0 to 100")
    return value


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(layer) for layer in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; for example 0,1,0,1") from None
