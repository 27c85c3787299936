"""The shipped suites: read, and the configurations of all their runs checked."""

import pytest
from support import ROOT

from pretrain.cli import main
from pretrain.compare.matrix import make_methods
from pretrain.compare.read import read_suite

SUITES = sorted(ROOT.joinpath("configs", "suites").glob("*.toml"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_suite_is_a_run(path, capsys):
    suite = read_suite(path)
    methods = make_methods(suite)
    assert suite.suite.baseline in methods
    for method in methods.values():
        assert method.rates[0] == method.config.optimizer.lr
    assert main(["compare", str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n{name}  lr ") == suite.suite.rates for name in methods)
