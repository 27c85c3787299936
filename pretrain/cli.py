"""`sparlow <command>`: finds the command, runs it, and turns a user's mistake into one sentence and exit code 2."""

import argparse
import contextlib
import importlib
import keyword
import os
import signal
import sys
from collections.abc import Sequence

from model.errors import RunFailed, UserError
from pretrain.machine.output import GONE, failure, mute
from pretrain.machine.threads import sleep_while_waiting

CLOSED_PIPE = 128 + signal.SIGPIPE

COMMANDS = {
    "prepare": "text -> tokenizer and token shards",
    "train": "train, or resume when the run folder holds a checkpoint",
    "plan": "parameters, tokens and FLOPs of a configuration, without running it",
    "import": "Hugging Face LLaMA folder -> checkpoint, as the start of a run",
    "grow": "checkpoint of a small model -> first checkpoint of a larger one's run",
    "eval": "held-out loss, perplexity and bits per byte of a checkpoint",
    "sample": "text from a checkpoint",
    "export": "checkpoint -> Hugging Face LLaMA folder",
    "spectrum": "singular values of a checkpoint's matrices, and the ranks they suggest",
    "compare": "methods against each other: equal tuning, equal tokens or FLOPs, several seeds",
    "report": "a picture and a table of one run or several",
    "bench": "time this code against a peer in one run, as ratios",
    "doctor": "versions and devices: what works here, and the fix for what does not",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    0 done, 1 failed, 2 the user's input was wrong, 143 stopped by a signal with a checkpoint, 141 nobody reads the
    output any more (as programs end by SIGPIPE; training goes on and does not).
    """
    try:
        try:
            return _run_command(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a closed pipe can be told from a failure
    except OSError:
        reason = failure(sys.stdout)
        if reason is None:
            raise
        mute(sys.stdout)
        if reason.errno in GONE:
            return CLOSED_PIPE
        with contextlib.suppress(OSError):
            print(f"sparlow: the output cannot be written ({reason.strerror})", file=sys.stderr)
        return 1


def _run_command(argv: Sequence[str] | None) -> int:
    sleep_while_waiting()  # before a command's module is imported, and torch with it
    arguments = [a for a in (sys.argv[1:] if argv is None else argv) if not _is_local_rank(a)]
    parser = argparse.ArgumentParser(
        prog="sparlow",
        description="Pretrain LLaMA-class language models with sparse-plus-low-rank weights.",
        epilog="example: sparlow prepare && sparlow train configs/quickstart.toml",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    chosen = next((a for a in arguments if a in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, allow_abbrev=False, description=summary)
        if name == chosen:
            module = importlib.import_module(f"pretrain.commands.{name + '_' * keyword.iskeyword(name)}")
            subparser.epilog = f"example: {module.EXAMPLE}"
            module.add_arguments(subparser)
    args, rest = parser.parse_known_args(arguments)
    args.overrides = rest
    if rest and (sentence := _wrong_argument(rest, arguments, hasattr(args, "takes_overrides"))):
        return _refuse(chosen, f"{sentence}; see sparlow {chosen} --help")
    try:
        return module.run(args)
    except UserError as error:
        return _refuse(chosen, str(error))
    except RunFailed as error:
        _refuse(chosen, str(error))
        return 1
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        sentence = str(error).partition(". ")[0]
        fix = "take a GPU with more free memory, or the CPU: CUDA_VISIBLE_DEVICES= sparlow"
        _refuse(chosen, f"{sentence}; {fix} {chosen} ...")
        return 1
    except KeyboardInterrupt:
        return 130


def _is_local_rank(argument: str) -> bool:
    """The DeepSpeed launcher puts --local_rank=N before the command; the environment says the same."""
    return argument.startswith(("--local_rank=", "--local-rank="))


def _wrong_argument(rest: Sequence[str], arguments: Sequence[str], takes_overrides: bool) -> str | None:
    """What is wrong with `rest`, those of `arguments` that the command does not know, or None."""
    if not takes_overrides:
        return f"{rest[0]}: unknown argument" + ("; only CONFIG.toml has such keys" if _is_override(rest[0]) else "")
    from pretrain.config.explain import unknown, without_equals

    wrong = next((a for a in rest if not _is_override(a)), None)
    return without_equals(arguments) or (unknown(wrong, arguments) if wrong else None)


def _is_override(argument: str) -> bool:
    return argument.startswith("--") and "." in argument.partition("=")[0]


def _refuse(command: str | None, sentence: str) -> int:
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # stderr may be a closed terminal
            print(f"sparlow {command}: {sentence}", file=sys.stderr)
    return 2
