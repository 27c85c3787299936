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
    parser.add_argument(
        "--no-check", action="store_true", help="do not check that DIR computes what CKPT does; its model card says so"
    )
    parser.add_argument("--json", action="store_true", help="print the checks' figures as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from pretrain.using.export import export

    report = export(args.checkpoint, args.out, dtype=args.dtype, overwrite=args.overwrite, check=not args.no_check)
    if args.json:
        print(json.dumps(report))
        return 0
    print(f"{report['out']}: {report['parameters']:,} parameters, {report['bytes'] / 1e6:.1f} MB")
    if not report["checked"]:
        print("not checked (--no-check): nothing shows that the folder computes what the checkpoint does")
        return 0
    rounding = f"rounding itself costs {report['rounding_error']:.1e}"
    print(f"read back: logits off by at most {report['read_back_error']:.1e} of their spread; {rounding}")
    if args.dtype == "bf16":
        print(f"bf16 weights move the logits by {report['weights_error']:.1e} of their spread (rms)")
    if report["folder_loss"] is not None:
        loss = f"{report['folder_loss']:.5f}, the training model's {report['model_loss']:.5f}"
        print(f"loss on a part of the held-out text {loss}")
    if report["transformers"]:
        error, documents = report["transformers_error"], report["tokenizer_documents"]
        print(f"transformers {report['transformers']}: logits off by at most {error:.1e} of their spread")
        strings = f"tokenizer: transformers gives equal ids on {report['tokenizer_strings']} built-in hard strings"
        if report["tokenizer_strings"] is None:
            print("no tokenizer: the checkpoint has none, so the folder has none either")
        elif documents is None:
            print(f"{strings}; not checked on held-out text: the corpus of the run is no longer at its data.path")
        else:
            print(f"{strings} and {documents} whole documents of held-out text")
    else:
        print("transformers is not installed: its own check was skipped (pip install transformers -c constraints.txt)")
    return 0
