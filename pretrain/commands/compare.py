"""`sparlow compare SUITE.toml`: methods against each other, equally tuned, at equal tokens or FLOPs."""

import argparse

EXAMPLE = "sparlow compare configs/suites/quick.toml --dry-run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("suite", metavar="SUITE.toml", help="configs/suites/ holds the shipped ones")
    parser.add_argument("--jobs", type=int, metavar="N", help="so many runs at once, which share the processor's cores")
    parser.add_argument("--gpus", metavar="0,1", help="one run at a time on each of these GPUs")
    parser.add_argument("--only", metavar="PATTERN", help="run methods of such names alone, e.g. 'dense + *'")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")


def run(args: argparse.Namespace) -> int:
    from model.errors import UserError
    from pretrain.compare.execute import missing_gpus
    from pretrain.compare.read import read_suite

    gpus = tuple(gpu.strip() for gpu in args.gpus.split(",")) if args.gpus is not None else ()
    if not all(gpus) or len(set(gpus)) != len(gpus):
        raise UserError(f"--gpus {args.gpus}: name each GPU once, separated by commas, e.g. 0,1")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    if gpus and args.jobs is not None:
        raise UserError("--jobs has no effect with --gpus, which has one run on each GPU; leave one out")
    suite = read_suite(args.suite, args.overrides)
    if gpus and not args.dry_run and (missing := missing_gpus(gpus)):
        raise UserError(
            f"--gpus {missing[0]}: this machine has no such GPU; name those that nvidia-smi -L lists, or leave --gpus "
            "out"
        )

    from pretrain.compare.compare import Options, compare

    return compare(suite, Options(args.jobs or 1, gpus, "*" if args.only is None else args.only, args.dry_run))
