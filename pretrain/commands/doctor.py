"""`sparlow doctor`: what works on this machine, and the fix for what does not."""

import argparse

EXAMPLE = "sparlow doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from pretrain.machine.doctor import examine

    findings = examine()
    if args.json:
        print(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "missing": "--  ", "broken": "FAIL"}[finding.status]
            print(f"{mark} {finding.what:22} {finding.detail}" + (f"\n     fix: {finding.fix}" if finding.fix else ""))
    return 1 if any(finding.status == "broken" for finding in findings) else 0
