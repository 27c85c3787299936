"""`sparlow eval CKPT`: held-out figures of a checkpoint."""

import argparse
import sys

EXAMPLE = "sparlow eval runs/quickstart --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder (its newest checkpoint) or one step's folder")
    parser.add_argument("--data", metavar="DIR", help="prepared corpus (default: the run's data.path)")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which part of it (default val)")
    parser.add_argument("--tokens", type=int, metavar="N", help="stop after about N tokens (default: all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from model.errors import UserError
    from model.transformer import Transformer
    from pretrain.checkpoint.read import Checkpoint, load_model, on_newest, require_same_tokenizer
    from pretrain.data.dataset import TokenDataset
    from pretrain.data.verify import check_at_start
    from pretrain.machine import distributed, memory
    from pretrain.using.evaluate import evaluate

    if args.tokens is not None and args.tokens < 1:
        raise UserError(f"--tokens {args.tokens}: must be at least 1")

    def opened(checkpoint: Checkpoint) -> tuple[Checkpoint, TokenDataset, str | None, Transformer]:
        config = checkpoint.config
        dataset = TokenDataset(
            args.data or config.data.path, args.split, config.train.seq_len, config.data.packing, config.run.seed
        )
        note = require_same_tokenizer(checkpoint, dataset, f"--data {args.data or config.data.path}", args.checkpoint)
        return checkpoint, dataset, note, load_model(checkpoint, world.device)

    memory.keep_freed_memory()
    with distributed.processes() as world:
        checkpoint, dataset, unknown, model = on_newest(args.checkpoint, opened, world)
        config = checkpoint.config
        unlisted = distributed.on_main(world, lambda: check_at_start(args.data or config.data.path))
        result = evaluate(model, dataset, world, config.train.micro_batch_size, args.tokens)
    assert result is not None
    figures = {
        "step": checkpoint.state.step,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.targets,
        "bytes": result.bytes,
    }
    if not world.is_main:
        return 0
    for note in filter(None, (unlisted, unknown, dataset.bytes_note)):
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            shown = "not known" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            print(f"{key:14} {shown}")
    return 0
