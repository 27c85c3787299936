"""`sparlow report RUN…`: a picture and a table of one run or several, and what growth has saved."""

import argparse

EXAMPLE = "sparlow report runs/scratch runs/grown --baseline runs/scratch --out runs/comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument("--out", metavar="DIR", help="folder to write (default: report/ in the first run)")
    parser.add_argument(
        "--baseline", metavar="RUN", help="compare with this run (default: the first that has not grown)"
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="TOKENS",
        help="smooth training losses over so many tokens (default: 2%% of the shortest run, at least 8 logged steps)",
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> int:
    import gc

    collects = gc.isenabled()
    gc.disable()  # records are a million objects without a circle, which a collector would look through again and again
    try:
        return _report(args)
    finally:
        if collects:
            gc.enable()


def _report(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pretrain.report.write import make_report

    out = Path(args.out) if args.out else Path(args.runs[0]) / "report"
    report = make_report([Path(name) for name in args.runs], args.baseline, args.window)
    files = report.write(out)
    if args.json:
        print(report.json(), end="")
        return 0
    for line in (*report.lines(), *files):
        print(line)
    return 0
