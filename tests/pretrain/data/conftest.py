"""Small corpora for the tests of data."""

import random
from pathlib import Path

import pytest

from pretrain.cli import main


@pytest.fixture(scope="session")
def salad() -> list[str]:
    """40 documents of lines of invented words, about 3 kB each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(150)]
    return ["".join(" ".join(rng.choices(words, k=8)) + "\n" for _ in range(80)) for _ in range(40)]


@pytest.fixture(scope="session")
def texts(salad, tmp_path_factory) -> Path:
    """The salad as a folder of .txt files."""
    folder = tmp_path_factory.mktemp("texts")
    for index, text in enumerate(salad):
        (folder / f"{index:02d}.txt").write_text(text)
    return folder


@pytest.fixture
def prepared(texts, tmp_path) -> Path:
    """The salad prepared with a vocabulary of 320, a copy of its own for every test."""
    out = tmp_path / "prepared"
    assert main(["prepare", "--text", str(texts), "--out", str(out), "--vocab-size", "320"]) == 0
    return out
