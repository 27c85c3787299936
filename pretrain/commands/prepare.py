"""`sparlow prepare`: text to a tokenizer and token shards."""

import argparse
import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from model.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.documents import Source
    from pretrain.data.manifest import Manifest

EXAMPLE = "sparlow prepare --text books/ notes.jsonl.gz --out data/mine --vocab-size 8000"
LOCAL = ("/", "./", "../", "~")
STDLIB_OUT, STDLIB_VOCAB, VOCAB = Path("data/stdlib"), 2048, 32000


class _Once(argparse.Action):
    """An option whose second value would silently replace the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, _: Any = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(
                self, "given twice, and a corpus is made of one data set; prepare each by itself"
            )
        setattr(namespace, self.dest, value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--source", choices=["stdlib"], default="stdlib", help="this Python's own library sources (default; no network)"
    )
    source.add_argument(
        "--text",
        nargs="+",
        action="extend",
        metavar="PATH",
        help=".txt .md .rst .py .parquet .arrow files, .jsonl .json .csv .tsv [.gz|.zst] files, or folders of them",
    )
    source.add_argument(
        "--hf", action=_Once, metavar="ID", help="a data set of the Hugging Face hub, or a local file or folder of one"
    )
    source.add_argument(
        "--tokens",
        type=Path,
        metavar="PATH",
        help="ids that are there already: .bin (nanoGPT, llm.c), .bin with .idx (Megatron-LM), save_to_disk's folders",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder to write (default for stdlib: {STDLIB_OUT})")
    parser.add_argument("--config", help="configuration of the --hf data set")
    parser.add_argument("--split", default="train", help="split of the --hf data set to train on (default: train)")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read --hf rows as they arrive instead of downloading the data set first (default: stream)",
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="a SentencePiece .model, a tokenizer.json, or a folder with one of them, instead of training",
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help=f"pieces to train (default: {VOCAB}; for stdlib {STDLIB_VOCAB})"
    )
    parser.add_argument(
        "--dtype", choices=("uint16", "uint32", "int32", "int64"), help="of a .bin without header (default: uint16)"
    )
    parser.add_argument("--document-end", type=int, metavar="ID", help="id that ends each document of a .bin, as 50256")
    parser.add_argument("--document-begin", type=int, metavar="ID", help="id that begins each document of a .bin")
    parser.add_argument("--token-key", metavar="KEY", help="column of save_to_disk's folder (default: input_ids)")
    parser.add_argument("--val-fraction", type=float, default=0.05, metavar="F", help="held-out share (default: 0.05)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after about so many tokens")
    parser.add_argument(
        "--verify", type=Path, metavar="DIR", help="compare every byte of a prepared corpus with its hashes, and stop"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus in --out that was made otherwise")
    parser.add_argument("--json", action="store_true", help="print the manifest")


def run(args: argparse.Namespace) -> int:
    """Prepare and print a table, or with --json the manifest.

    143 after SIGTERM, 129 after SIGHUP, 130 after Ctrl-C. What ends it leaves the shards that were finished, with which
    the same command goes on, and else nothing.
    """
    if args.verify is not None:
        return _verify(args)
    _require_sensible(args)
    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signals = (signal.SIGTERM,) if under_nohup else (signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, _stop) for number in signals}
    try:
        manifest = _copy(args) if args.tokens else _encode(args)
    except (SystemExit, KeyboardInterrupt) as stopped:
        _tell_what_is_left(args.out or STDLIB_OUT, stopped)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    print(manifest.to_json() if args.json else _table(manifest))
    return 0


def _encode(args: argparse.Namespace) -> "Manifest":
    from pretrain.data.prepare import PrepareOptions, prepare

    stdlib = not (args.text or args.hf)
    options = PrepareOptions(
        out=args.out or STDLIB_OUT,
        vocab_size=args.vocab_size or (STDLIB_VOCAB if stdlib else VOCAB),
        tokenizer=args.tokenizer,
        val_fraction=args.val_fraction,
        max_tokens=args.max_tokens,
        overwrite=args.overwrite,
    )
    return prepare(_source(args), options, say=_say)


def _copy(args: argparse.Namespace) -> "Manifest":
    from pretrain.data.tokenised.copy import CopyOptions, copy_tokens
    from pretrain.data.tokenised.opening import Reading

    options = CopyOptions(
        path=args.tokens,
        out=args.out,
        reading=Reading(args.dtype, args.document_begin, args.document_end, args.token_key),
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        val_fraction=args.val_fraction,
        overwrite=args.overwrite,
    )
    return copy_tokens(options, say=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _verify(args: argparse.Namespace) -> int:
    from pretrain.data.verify import verify

    if args.text or args.hf or args.tokens or args.out:
        raise UserError("--verify: reads a prepared corpus and makes none; leave --text, --hf, --tokens and --out out")
    print(verify(args.verify))
    return 0


def _require_sensible(args: argparse.Namespace) -> None:
    if args.out is None and (args.text or args.hf or args.tokens):
        raise UserError("--out: missing; name the folder to write, e.g. --out data/mine")
    if args.tokenizer and args.vocab_size:
        raise UserError("--vocab-size: has no effect beside --tokenizer; leave one out")
    if args.vocab_size is not None and args.vocab_size < 1:
        raise UserError(f"--vocab-size {args.vocab_size}: must be positive, e.g. {VOCAB}")
    if not 0 < args.val_fraction < 1:
        raise UserError(f"--val-fraction {args.val_fraction}: must lie between 0 and 1, e.g. 0.05")
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UserError(f"--max-tokens {args.max_tokens}: must be at least 2")
    for name in ("dtype", "document_begin", "document_end", "token_key"):
        if not args.tokens and getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: has no effect without --tokens; leave it out")
    if args.tokens and args.max_tokens is not None:
        raise UserError("--max-tokens: has no effect with --tokens, which copies all ids; leave it out")
    if not args.hf and (args.config or args.split != "train" or not args.stream):
        raise UserError("--config, --split and --stream: have no effect without --hf; leave them out")
    if not (args.hf or args.text) and args.text_key != "text":
        raise UserError("--text-key: has no effect without --text or --hf; leave it out")


def _source(args: argparse.Namespace) -> "Source":
    from pretrain.data.sources.text import TYPES, TextSource

    # A path that is not there is a mistake of its own and not the id of a data set.
    if args.hf and (_exists(args.hf) or args.hf.startswith(LOCAL) or args.hf.endswith(TYPES)):
        from pretrain.data.sources.folder import FolderSource

        return FolderSource(Path(args.hf), args.config, args.split, args.text_key, args.val_fraction)
    if args.hf:
        from pretrain.data.sources.hub import HubSource

        return HubSource(args.hf, args.config, args.split, args.stream, args.text_key, args.val_fraction)
    if args.text:
        return TextSource(args.text, args.text_key)
    from pretrain.data.sources.stdlib import StdlibSource

    return StdlibSource()


def _exists(path: str) -> bool:
    """Whether something stands at a path; also where it cannot be looked at, which the folder's reader then says."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return True


def _table(manifest: "Manifest") -> str:
    lines = [f"{'split':<8}{'documents':>12}{'tokens':>16}{'bytes':>16}{'bytes/token':>14}"]
    for name in ("train", "val"):
        split = manifest.split(name)
        size, ratio = ("-", "-") if split.bytes is None else (f"{split.bytes:,}", f"{split.bytes / split.tokens:.2f}")
        lines.append(f"{name:<8}{split.documents:>12,}{split.tokens:>16,}{size:>16}{ratio:>14}")
    for reason, count in manifest.skipped.items():
        lines.append(f"left out: {count:,} x {reason} (first: {manifest.skipped_first[reason]})")
    return "\n".join(lines)


def _stop(number: int, frame: Any) -> NoReturn:
    sys.exit(128 + number)


def _tell_what_is_left(out: Path, stopped: SystemExit | KeyboardInterrupt) -> None:
    from model.hf.staging import PARTIAL
    from pretrain.data.unfinished import finished_shards

    by = signal.SIGINT
    if isinstance(stopped, SystemExit) and isinstance(stopped.code, int):
        by = signal.Signals(stopped.code - 128)
    shards = finished_shards(out / PARTIAL)
    left = f"{shards} finished shards are kept, and the same command goes on after them"
    with contextlib.suppress(OSError):  # the terminal is closed
        print(
            f"sparlow prepare: stopped by {by.name}; {left if shards else 'nothing was written'}",
            file=sys.stderr,
            flush=True,
        )
