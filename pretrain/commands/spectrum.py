"""`sparlow spectrum RUN`: singular spectra of a checkpoint's matrices, and ranks for [linear.ranks]."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pretrain.checkpoint.read import Checkpoint
    from pretrain.spectrum.measure import Spectra

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
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--reduction", type=float, metavar="R", help="ranks that leave out this part of all singular values (WeLore)"
    )
    target.add_argument(
        "--target-parameters", type=int, metavar="N", help="ranks with which the model has at most N parameters"
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: spectrum/ in the run)")
    parser.add_argument("--json", action="store_true", help="print table.json")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from model.errors import UserError
    from pretrain.checkpoint.folders import STEP_FOLDER
    from pretrain.checkpoint.read import Checkpoint, best_device, on_newest, open_checkpoint
    from pretrain.spectrum.measure import Spectra, compare, measure, over_training, run_folder
    from pretrain.spectrum.suggest import suggest
    from pretrain.spectrum.write import as_json, lines, make_folder, write

    _require_sensible(args)
    device = best_device()

    def work(checkpoint: Checkpoint) -> tuple[Checkpoint, Path, Spectra]:
        run = run_folder(checkpoint.folder)
        if args.out is None and run is None:
            raise UserError(f"{args.checkpoint}: lies in no run's folder; say where to write with --out DIR")
        other = open_checkpoint(args.against) if args.against is not None else None
        out = Path(args.out) if args.out is not None else (run or Path()) / "spectrum"
        make_folder(out)
        found = measure(checkpoint, device, _say)
        if other is not None:
            compare(found, checkpoint, other, args.top or TOP, args.epsilon or EPSILON, device, _say)
        if args.gradients is not None:
            _add_gradients(found, checkpoint, args.gradients, device)
        return checkpoint, out, found

    checkpoint, out, found = on_newest(args.checkpoint, work)
    ranks = None
    if args.reduction is not None or args.target_parameters is not None:
        shapes = {row["matrix"]: tuple(row["shape"]) for row in found.rows}
        whole = {name: parts["W"] for name, parts in found.values.items()}
        ranks = suggest(checkpoint.stage.config, shapes, whole, args.reduction, args.target_parameters)
    if not STEP_FOLDER.fullmatch(Path(args.checkpoint).name):
        over_training(found, checkpoint, device, _say)
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
    for name in ("top", "gradients", "target_parameters"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.epsilon is not None and not 0 < args.epsilon <= 1:
        raise UserError(f"--epsilon {args.epsilon:g} is no cosine to compare with; write one above 0, at most 1")
    if args.reduction is not None and not 0 <= args.reduction < 1:
        raise UserError(f"--reduction {args.reduction:g} is no part of all singular values; write 0.5 for half of them")


def _add_gradients(found: "Spectra", checkpoint: "Checkpoint", sequences: int, device: "torch.device") -> None:
    """Add the gradients over the first `sequences` of the run's held-out text."""
    import torch

    from model.errors import UserError
    from pretrain.checkpoint.read import load_model
    from pretrain.data.dataset import TokenDataset
    from pretrain.spectrum.measure import add_gradients

    config = checkpoint.config
    dataset = TokenDataset(config.data.path, "val", config.train.seq_len, config.data.packing, config.run.seed)
    if sequences > dataset.n_samples:
        raise UserError(f"--gradients {sequences}: there are {dataset.n_samples} held-out sequences; ask for less")
    batch = dataset.batch(0, sequences)
    model = load_model(checkpoint, device, torch.float32)
    add_gradients(found, model, batch.tokens.to(device), batch.targets.to(device), _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
