"""`sparlow import SRC --out DIR`: a Hugging Face LLaMA folder as the start of a run."""

import argparse
from typing import Any

EXAMPLE = "sparlow import Llama-3.2-1B --out runs/llama"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a Hugging Face folder: config.json and safetensors")
    parser.add_argument("--out", required=True, metavar="DIR", help="new run folder, for train --from DIR")
    parser.add_argument(
        "--linear",
        metavar="NAME",
        default="dense",
        help="what the projections become: dense (default, the weights as they are), low_rank, sparse_low_rank, "
        "sparse, or lora, lora_fa and relora, which freeze them",
    )
    parser.add_argument("--rank", type=int, metavar="R", help="linear.rank of the factors (default 128)")
    parser.add_argument(
        "--reduction",
        type=float,
        metavar="P",
        help="in place of --rank: linear.ranks by WeLore's rule, leaving out the part P of all singular values",
    )
    parser.add_argument("--alpha", type=float, metavar="X", help="linear.alpha of the factors (default 32)")
    parser.add_argument(
        "--init", metavar="NAME", help="linear.init of factors beside frozen weights (default kaiming; spectral: PiSSA)"
    )
    parser.add_argument("--density", type=float, metavar="D", help="linear.density of the sparse part (default 0.03)")
    parser.add_argument(
        "--support",
        choices=("random", "magnitude", "block"),
        help="where the sparse part has its entries: drawn, where the factors miss most, or in drawn blocks "
        "(linear.support); default random",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of drawn entries (default 0)")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="the model's tokenizer, where SRC has none; none: go without one"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR when it is an import")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON, with each matrix' error")


def run(args: argparse.Namespace) -> int:
    import json
    import shlex
    from functools import partial

    from pretrain.importing.run import import_folder, record
    from pretrain.importing.tables import FILE, tables

    done = import_folder(
        args.source,
        args.out,
        linear=_linear(args),
        reduction=args.reduction,
        support="magnitude" if args.support == "magnitude" else "random",
        seed=args.seed,
        tokenizer=args.tokenizer,
        overwrite=args.overwrite,
        say=(lambda line: None) if args.json else partial(print, flush=True),
    )
    if args.json:
        print(json.dumps(record(done, args.source)))
        return 0
    for note in done.notes:
        print(f"note: {note}")
    if done.approximations:
        print("error: relative, in the Frobenius norm; without: that of the factors without sparse entries")
    print(f"{args.out}: {done.bytes / 1e6:.1f} MB; {args.out}/{FILE} has the tables that a run from it needs:\n")
    print(tables(done.config.model, done.config.linear))
    out, data = shlex.quote(args.out), "data/mine"
    step = f"{args.out}/checkpoints/step-00000000"
    if done.tokenizer:
        print(f"sparlow prepare --text TEXTS --tokenizer {shlex.quote(f'{step}/{done.tokenizer}')} --out {data}")
    print(f"sparlow train {shlex.quote(f'{args.out}/{FILE}')} --from {out} --data.path={data}")
    return 0


def _linear(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of [linear]; UserError for an option that the kind of linear does not take."""
    from model.errors import UserError
    from model.linear import LINEARS, require_matrices
    from model.linear.dense import Dense
    from model.linear.from_dense import KINDS
    from model.linear.lora import Lora
    from model.linear.supported import SupportedLinear

    others = ", ".join(name for name, kind in LINEARS.items() if issubclass(kind, (Dense, *KINDS)))
    if args.linear not in LINEARS:
        raise UserError(f"--linear {args.linear!r} is none of {others}")
    require_matrices(LINEARS[args.linear].Config(), f"--linear {args.linear}", f"choose one of {others}")
    if not issubclass(LINEARS[args.linear], (Dense, *KINDS)):
        raise UserError(
            f"--linear {args.linear}: such linears are not made of weights that are there; choose one of {others}"
        )
    fields = LINEARS[args.linear].Config.model_fields
    table: dict[str, Any] = {"name": args.linear}
    for key in ("rank", "alpha", "density"):
        value = getattr(args, key)
        if value is not None and key not in fields:
            raise UserError(f"--{key} has no effect with --linear {args.linear}; leave it out")
        if value is not None:
            table[key] = value
    if args.init is not None:
        if not issubclass(LINEARS[args.linear], Lora):
            raise UserError(f"--init has no effect with --linear {args.linear}, whose values follow from the weights")
        table["init"] = args.init
    if args.reduction is not None:
        if "rank" not in fields or args.rank is not None:
            other = "--rank" if args.rank is not None else f"--linear {args.linear}"
            raise UserError(f"--reduction gives each matrix a rank of its own, which {other} contradicts; drop one")
        if issubclass(LINEARS[args.linear], Lora):
            raise UserError(
                f"--reduction leaves singular values out, and --linear {args.linear} keeps them all; drop it"
            )
        if not 0 <= args.reduction < 1:
            raise UserError(f"--reduction {args.reduction:g}: must be at least 0 and less than 1")
    if args.support and not issubclass(LINEARS[args.linear], SupportedLinear):
        raise UserError(f"--support has no effect with --linear {args.linear}; leave it out")
    if args.support == "block" and "support" not in fields:
        raise UserError(f"--support block does not go with --linear {args.linear}; choose random or magnitude")
    if args.support == "block":
        table["support"] = "block"
    return table
