"""A tiny corpus and a tiny run for the tests of the loop."""

import random
from pathlib import Path

import pytest
from support import write_tiny


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A prepared corpus of about 30k tokens of word salad, vocabulary 320."""
    from pretrain.cli import main

    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(200)]
    (folder / "text").mkdir()
    for index in range(60):
        text = " ".join(rng.choices(words, k=300)) + "\n"
        (folder / "text" / f"{index:03d}.txt").write_text(text)
    out = folder / "data"
    arguments = ["prepare", "--text", str(folder / "text"), "--out", str(out), "--vocab-size", "320"]
    assert main(arguments) == 0
    return out


@pytest.fixture
def tiny(corpus, tmp_path) -> Path:
    """A configuration file of a run that takes seconds; its folder is `tmp_path / "run"`."""
    return write_tiny(tmp_path, corpus)
