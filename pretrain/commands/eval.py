"""`sparlow eval CKPT`: held-out figures of a checkpoint, or the likelihood of each of given documents."""

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
    parser.add_argument(
        "--text", nargs="+", metavar="FILE", help="documents instead: the log-likelihood of each one, as lm-eval has it"
    )
    parser.add_argument(
        "--text-key", default="text", metavar="KEY", help="key of the text in rows of --text files (default: text)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; of documents, a line for each")


def run(args: argparse.Namespace) -> int:
    from model.errors import UserError
    from model.transformer import Transformer
    from pretrain.checkpoint.read import Checkpoint, load_model, on_newest, require_same_tokenizer
    from pretrain.data.open import Dataset, open_dataset
    from pretrain.data.verify import check_at_start
    from pretrain.machine import distributed, memory
    from pretrain.using.evaluate import evaluate

    if args.tokens is not None and args.tokens < 1:
        raise UserError(f"--tokens {args.tokens}: must be at least 1")
    if args.text:
        return _evaluate_documents(args)
    if args.text_key != "text":
        raise UserError("--text-key: has no effect without --text; leave it out")

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
        _print(figures | ({"sources": sources} if sources else {}), as_json=True)
        return 0
    for name, found in {"": figures, **sources}.items():
        if name:
            print(f"{name}:")
        _print(found, as_json=False)
    return 0


def _figures(result: "Evaluation") -> dict[str, float | None]:
    return {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.targets,
        "bytes": result.bytes,
    }


def _evaluate_documents(args: argparse.Namespace) -> int:
    """Print the log-likelihood of every document in the files of --text, and of all together."""
    import json

    from model.errors import UserError
    from pretrain.checkpoint.read import best_device, load_model, on_newest, tokenizer_of
    from pretrain.data.documents import SkipLog, readable
    from pretrain.data.sources.text import TextSource
    from pretrain.engine.kernel_choices import weights_kept
    from pretrain.machine import memory
    from pretrain.using.documents import Likelihood, document_likelihood

    if args.data or args.split != "val" or args.tokens is not None:
        raise UserError("--data, --split and --tokens: have no effect beside --text; leave them out")
    memory.keep_freed_memory()
    texts, skipped, device = TextSource(args.text, args.text_key), SkipLog(), best_device()
    checkpoint, tokenizer, model = on_newest(
        args.checkpoint, lambda found: (found, tokenizer_of(found), load_model(found, device))
    )
    if tokenizer is None:
        raise UserError(f"{checkpoint.folder}: has no tokenizer, so --text cannot be read; leave --text out")
    found: list[Likelihood] = []
    with weights_kept(model):
        for number, document in enumerate(readable(texts.records(), skipped)):
            found.append(document_likelihood(model, tokenizer, document.text, device))
            if args.json:
                figures = {"document": number, **vars(found[-1]), "bits_per_byte": found[-1].bits_per_byte}
                print(json.dumps(figures), flush=True)
    if skipped.counts:
        print(f"note: left out: {skipped}", file=sys.stderr)
    if not found:
        raise UserError(f"--text {' '.join(args.text)}: holds no document that can be read; name its key by --text-key")
    total = Likelihood(*(sum(getattr(each, key) for each in found) for key in ("loglikelihood", "tokens", "bytes")))
    if not args.json:
        figures = {"step": checkpoint.state.step, "documents": len(found), **vars(total)}
        _print(figures | {"bits_per_byte": total.bits_per_byte}, as_json=False)
    return 0


def _print(figures: dict[str, Any], as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        shown = "not known" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        print(f"{key:14} {shown}")
