"""Corpora of one tokenizer for the tests of mixtures."""

import random
from pathlib import Path

from support import TINY

from pretrain.cli import main

WEIGHTS = {"prose": 3.0, "code": 1.0}


def prepare_two(folder: Path) -> dict[str, Path]:
    """Two corpora: `code` has a third of the documents of `prose`, other letters, and the tokenizer of `prose`."""
    tokenizer: list[str] = ["--vocab-size", "320"]
    for name, documents, letters in (("prose", 60, "abcdefghijklmnop"), ("code", 20, "opqrstuvw(){}=")):
        rng = random.Random(name)
        words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(200)]
        (folder / "text" / name).mkdir(parents=True)
        for index in range(documents):
            text = " ".join(rng.choices(words, k=rng.randint(5, 300))) + "\n"
            (folder / "text" / name / f"{index:03d}.txt").write_text(text)
        text = ["--text", str(folder / "text" / name), "--out", str(folder / name), "--val-fraction", "0.2"]
        assert main(["prepare", *text, *tokenizer]) == 0
        tokenizer = ["--tokenizer", str(folder / "prose" / "tokenizer.model")]
    return {name: folder / name for name in WEIGHTS}


def write_mixed(folder: Path, paths: dict[str, Path]) -> Path:
    """The configuration file `mixed.toml` in `folder`, of a run in `folder / "run"` on a mixture."""
    sources = "\n".join(f'{name} = {{ path = "{paths[name]}", weight = {WEIGHTS[name]} }}' for name in paths)
    text = TINY.format(run=folder / "run", data="-").replace('[data]\npath = "-"', f"[data.mixture]\n{sources}")
    path = folder / "mixed.toml"
    path.write_text(text)
    return path
