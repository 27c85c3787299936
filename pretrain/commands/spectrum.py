"""`sparlow spectrum RUN`: singular spectra of a checkpoint's matrices, and ranks for [linear.ranks]."""

import argparse
import sys

TOP, EPSILON = 10, 0.5
"""Defaults of --top and --epsilon, the paper's."""

EXAMPLE = "sparlow spectrum runs/quickstart --reduction 0.7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="RUN", help="a run folder (its newest checkpoint, and the older ones' means) or a step's"
    )
    parser.add_argument(
        "--against", metavar="OTHER", help="count intruder dimensions against this run or step (arXiv 2410.21228)"
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="singular vectors of each matrix that may be intruders (default 10)"
    )
    parser.add_argument(
        "--epsilon", type=float, metavar="E", help="an intruder is less alike to all old ones than this (default 0.5)"
    )
    parser.add_argument(
        "--gradients", type=int, metavar="N", help="also the gradient by each W over N held-out sequences"
    )
    parser.add_argument("--data", metavar="DIR", help="prepared corpus for --gradients (default: the run's own)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--reduction", type=float, metavar="R", help="ranks that leave out this part of all singular values (WeLore)"
    )
    target.add_argument(
        "--target-parameters", type=int, metavar="N", help="ranks with which the model has at most N parameters"
    )
    parser.add_argument(
        "--multiple-of", type=int, metavar="M", help="round ranks down to multiples of M; GPUs like 8 or 16 (default 1)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: spectrum/ in the run)")
    parser.add_argument("--json", action="store_true", help="print table.json")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from model.errors import UserError
    from model.linear import require_matrices
    from pretrain.checkpoint.folders import STEP_FOLDER
    from pretrain.checkpoint.read import Checkpoint, best_device, on_newest, open_checkpoint
    from pretrain.data.dataset import Batch
    from pretrain.spectrum.gradients import held_out
    from pretrain.spectrum.measure import Spectra, compare, measure, over_training, run_folder
    from pretrain.spectrum.suggest import suggest
    from pretrain.spectrum.write import as_json, lines, make_folder, write

    _require_sensible(args)
    device = best_device()

    def work(checkpoint: Checkpoint) -> tuple[Checkpoint, Path, Batch | None, Spectra]:
        run = run_folder(checkpoint.folder)
        if args.out is None and run is None:
            raise UserError(f"{args.checkpoint}: lies in no run's folder; say where to write with --out DIR")
        other = open_checkpoint(args.against) if args.against is not None else None
        for one, key in ((checkpoint, "spectrum"), (other, "--against")):
            if one is not None:
                require_matrices(one.stage.config.linear, key, "give a checkpoint of other linears")
        out = Path(args.out) if args.out is not None else (run or Path()) / "spectrum"
        batch = held_out(checkpoint, args.gradients, args.data) if args.gradients is not None else None
        make_folder(out)
        found = measure(checkpoint, device, _say, batch)
        if other is not None:
            compare(found, checkpoint, other, args.top or TOP, args.epsilon or EPSILON, device, _say)
        return checkpoint, out, batch, found

    checkpoint, out, batch, found = on_newest(args.checkpoint, work)
    ranks = None
    if args.reduction is not None or args.target_parameters is not None:
        shapes = {row["matrix"]: tuple(row["shape"]) for row in found.rows}
        whole = {name: parts["W"] for name, parts in found.values.items()}
        targets, multiple = (args.reduction, args.target_parameters), args.multiple_of or 1
        ranks = suggest(checkpoint.stage.config, shapes, whole, *targets, multiple)
    if not STEP_FOLDER.fullmatch(Path(args.checkpoint).name):
        over_training(found, checkpoint, device, _say, batch)
    files = write(found, ranks, out)
    if args.json:
        print(as_json(found, ranks), end="")
        return 0
    for line in (*lines(found, ranks), *files):
        print(line)
    return 0


def _require_sensible(args: argparse.Namespace) -> None:
    from model.errors import UserError

    for name in ("top", "epsilon"):
        if getattr(args, name) is not None and args.against is None:
            raise UserError(f"--{name} has no effect without --against; name the checkpoint to compare with")
    if args.data is not None and args.gradients is None:
        raise UserError("--data has no effect without --gradients, which alone reads text; give both")
    if args.multiple_of is not None and args.reduction is None and args.target_parameters is None:
        raise UserError("--multiple-of has no effect without --reduction or --target-parameters; give one of them")
    for name in ("top", "gradients", "target_parameters", "multiple_of"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.epsilon is not None and not 0 < args.epsilon <= 1:
        raise UserError(f"--epsilon {args.epsilon:g} is no cosine to compare with; write one above 0, at most 1")
    if args.reduction is not None and not 0 <= args.reduction < 1:
        raise UserError(f"--reduction {args.reduction:g} is no part of all singular values; write 0.5 for half of them")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
