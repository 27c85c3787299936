"""A tiny corpus and a tiny run for the tests of the loop, and the order in which tests are handed to processes."""

import random
from pathlib import Path

import pytest
from faults_report import PROPERTY, FaultReport, faults_of
from support import ROOT, write_tiny

SPREAD = ("tests/kernels/compile/test_compile.py", "tests/kernels/test_triton.py")
"""Files whose tests share nothing that is dear, so that each may go to any process."""
LONGEST = (
    *SPREAD,
    "tests/pretrain/test_matrix_world.py",
    "tests/pretrain/test_world_size.py",
    "tests/pretrain/test_export_check.py",
    "tests/pretrain/test_consumer_7b.py",
    "tests/pretrain/test_engine_release.py",
    "tests/pretrain/test_from.py",
    "tests/pretrain/test_offload.py",
    "tests/pretrain/test_lost_terminal.py",
    "tests/launch/test_scripts.py",
)
"""Begun first: a file that takes a minute and comes last leaves the other cores idle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-report", help="write what became of the tests marked `fault` to this file (JSON)")


def pytest_configure(config: pytest.Config) -> None:
    out = config.getoption("--fault-report")
    if out and not hasattr(config, "workerinput"):  # the process that hands the tests out, or the only one
        config.pluginmanager.register(FaultReport(Path(out)), "fault-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties.append((PROPERTY, faults_of(item)))
    rank = {ROOT / name: index for index, name in enumerate(LONGEST)}
    assert all(path.exists() for path in rank), "LONGEST names a file that is gone"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """One file, one process, but for SPREAD; in the order of collection."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return nodeid if file in SPREAD else file

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return ByFile(config, log)


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
