"""`sparlow export CKPT --out DIR`: a Hugging Face LLaMA folder, checked before it is declared done."""

import argparse

EXAMPLE = "sparlow export runs/quickstart --out exports/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder (its newest checkpoint) or one step's folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder for config.json, weights and tokenizer")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="precision of the weights (default fp32)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR when it exists")
    parser.add_argument("--json", action="store_true", help="print the checks' figures as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from pretrain.export import export

    report = export(args.checkpoint, args.out, dtype=args.dtype, overwrite=args.overwrite)
    if args.json:
        print(json.dumps(report))
        return 0
    print(f"{report['out']}: {report['parameters']:,} parameters, {report['bytes'] / 1e6:.1f} MB")
    print(f"read back: logits differ by at most {report['max_logit_difference']:.2e} from the training model's")
    if report["transformers"]:
        difference, lines = report["max_logit_difference_transformers"], report["tokenizer_lines"]
        print(f"transformers {report['transformers']}: logits differ by at most {difference:.2e}")
        if lines is None:
            print("the tokenizer was not checked: the corpus of the run is no longer at its data.path")
        else:
            print(f"tokenizer: transformers gives equal ids on {lines} lines of held-out text")
    else:
        print("transformers is not installed: its own check was skipped (pip install transformers -c constraints.txt)")
    return 0
