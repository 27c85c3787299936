"""`sparlow eval CKPT`: held-out figures of a checkpoint."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.using.evaluate import Evaluation

EXAMPLE = "sparlow eval runs/quickstart --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder (its newest checkpoint) or one step's folder")
    parser.add_argument("--data", metavar="DIR", help="prepared corpus (default: the run's own)")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which part of it (default val)")
    parser.add_argument("--tokens", type=int, metavar="N", help="stop after about N tokens (default: all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.errors import UserError
    from model.transformer import Transformer
    from pretrain.checkpoint.read import Checkpoint, load_model, on_newest, require_same_tokenizer
    from pretrain.data.open import Dataset, open_dataset
    from pretrain.data.verify import check_at_start
    from pretrain.machine import distributed, memory
    from pretrain.using.evaluate import evaluate

    if args.tokens is not None and args.tokens < 1:
        raise UserError(f"--tokens {args.tokens}: must be at least 1")

    def opened(checkpoint: Checkpoint) -> tuple[Checkpoint, Dataset, str | None, Transformer]:
        dataset, named = open_dataset(checkpoint.config, args.split, args.data), checkpoint.config.data.named
        note = require_same_tokenizer(
            checkpoint, dataset, f"--data {args.data}" if args.data else named, args.checkpoint
        )
        return checkpoint, dataset, note, load_model(checkpoint, world.device)

    memory.keep_freed_memory()
    with distributed.processes() as world:
        checkpoint, dataset, unknown, model = on_newest(args.checkpoint, opened, world)
        config = checkpoint.config
        paths = [args.data] if args.data else config.data.paths.values()
        unlisted = distributed.on_main(world, lambda: [check_at_start(path) for path in paths])
        result = evaluate(model, dataset, world, config.train.micro_batch_size, args.tokens)
    assert result is not None
    figures: dict[str, Any] = {"step": checkpoint.state.step, **_figures(result)}
    sources = {name: _figures(source) for name, source in result.sources.items()}
    if not world.is_main:
        return 0
    for note in filter(None, (*unlisted, unknown, dataset.bytes_note)):
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures | ({"sources": sources} if sources else {})))
        return 0
    for name, found in {"": figures, **sources}.items():
        if name:
            print(f"{name}:")
        for key, value in found.items():
            shown = "not known" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"{key:14} {shown}")
    return 0


def _figures(result: "Evaluation") -> dict[str, float | None]:
    return {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.targets,
        "bytes": result.bytes,
    }
