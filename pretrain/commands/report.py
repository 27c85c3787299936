"""`sparlow report RUN…`: a picture and a table of one run or several."""

import argparse

EXAMPLE = "sparlow report runs/quickstart runs/dense --out runs/comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: report/ in the first run)")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pretrain.report import write_report

    out = Path(args.out) if args.out else Path(args.runs[0]) / "report"
    for path in write_report([Path(name) for name in args.runs], out):
        print(path)
    return 0
