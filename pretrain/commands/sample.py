"""`sparlow sample CKPT`: text from a checkpoint."""

import argparse

EXAMPLE = 'sparlow sample runs/quickstart --prompt "def main():" --tokens 100'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="a run folder (its newest checkpoint) or one step's folder")
    parser.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="new tokens at most (default 128)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw among the k likeliest tokens (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another text (default 0)")
    parser.add_argument("--json", action="store_true", help="print prompts and texts as JSON")


def run(args: argparse.Namespace) -> int:
    import json
    import math

    from model.errors import UserError
    from pretrain.checkpoint.read import best_device, load_model, on_newest, tokenizer_of
    from pretrain.machine import memory
    from pretrain.machine.distributed import World
    from pretrain.using.generate import generate

    if not 0 <= args.temperature < math.inf or args.tokens < 1 or args.top_k < 1:
        raise UserError("--temperature must be a finite number of at least 0, --tokens and --top-k at least 1")
    memory.keep_freed_memory()
    device = best_device()
    checkpoint, tokenizer, model = on_newest(
        args.checkpoint, lambda found: (found, tokenizer_of(found), load_model(found, device))
    )
    if tokenizer is None:
        raise UserError(
            f"{args.checkpoint}: no tokenizer there, since its ids came without one; export the model and sample with "
            "the tokenizer that made them"
        )
    outputs = []
    for prompt in args.prompt or [*checkpoint.config.eval.prompts] or ["The "]:
        text = generate(
            model,
            tokenizer,
            prompt,
            tokens=args.tokens,
            seed=args.seed,
            world=World(0, 1, device),
            temperature=args.temperature,
            top_k=args.top_k,
        )
        outputs.append({"prompt": prompt, "text": text})
        if not args.json:
            print(f"{text}\n{'-' * 40}")
    if args.json:
        print(json.dumps(outputs, ensure_ascii=False))
    return 0
