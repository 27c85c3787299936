"""Suites that are refused, each with a sentence that names the key and the fix."""

import pytest
from suites import write_suite

from model.errors import UserError
from pretrain.compare.matrix import make_methods
from pretrain.compare.read import read_suite

METHODS = '[[methods]]\nlinear = ["dense"]\noptimizer = ["adamw"]\n'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rates = 2", "rats = 2", "suite.rats: unknown key; did you mean 'rates'?"),
        ("rates = 2", "rates = 3", "rates: 2 learning rates, and suite.rates asks for 3 of every method"),
        ("[1e-3, 2e-3]", "[2e-3, 1e-3]", "[[methods]] number 1, rates: [0.002, 0.001] does not rise"),
        ("[1e-3, 2e-3]", '["a", 2e-3]', "[[methods]] number 1, rates"),
        ("[1e-3, 2e-3]", "[-1.0, 2e-3]", "expected a number greater than 0"),
        ('linear = ["dense", "thin"]', 'linear = ["dense", "thim"]', "linear: there is no table [linears.thim]; did"),
        ('linear = ["dense", "thin"]', 'linear = ["dense"]', "linears.thin: has no effect, as no [[methods]] names it"),
        ('linear = ["dense", "thin"]', "", "[[methods]] number 1, linear: expected a value (it is missing)"),
        ('"dense + adamw"', '"dense"', "suite.baseline: 'dense' is none of the methods"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "has a seed twice"),
        ("seeds = [0, 1]", "seeds = [0, -1]", "suite.seeds.1: expected a number of at least 0"),
        ("seeds = [0, 1]", "seeds = []", "suite.seeds: expected a list of at least 1 item"),
        ('["tokens", "flops"]', '["token"]', "suite.equal.0: expected 'tokens' or 'flops'"),
        ('["tokens", "flops"]', '["tokens", "tokens"]', "suite.equal"),
        ("seeds = [0, 1]", "seeds = [0]", "suite.more_seeds: has no effect with one seed"),
        ("[base.model]", "[base.run]\nseed = 1\n[base.model]", "base.run: the folders and seeds"),
        ("[base.model]", "[base.linear]\nrank = 1\n[base.model]", "put it under [linears.NAME]"),
        ("[base.train]", "[base.train]\nmax_steps = 3", "base.train.max_steps: runs are compared at the end"),
        ("[optimizers.adamw]", "[optimizers.adamw]\nlr = 1e-3", "optimizers.adamw.lr: is listed as rates"),
        ("[linears.dense]", "[growths.none]\n[linears.dense]", "growths.none: stands for no growth at all"),
        ("[linears.thin]", '[linears."a/b"]\nname = "dense"\n[linears.thin]', "linears.a/b: is no name for folders"),
        ('name = "cosine"', 'name = "cosine_restarts"', 'suite.equal: "flops" gives runs other numbers of steps'),
        ("[base.model]", "[bases.model]", "bases: unknown table; did you mean 'base'?"),
        ("[base.model]", "[base.evals]\na = 1\n[base.model]", "base.evals: unknown table; did you mean 'eval'?"),
        ("[base.model]", "[base.foo]\na = 1\n[base.model]", "base.foo: unknown table; it knows model, schedule, "),
    ],
)
def test_a_wrong_suite_is_one_sentence(tmp_path, old, new, said):
    path = write_suite(tmp_path, more="[5]")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_suite(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_item_of_a_list_is_told_once(tmp_path):
    path = write_suite(tmp_path, rates="[1e-3, inf]")
    with pytest.raises(UserError, match=r"^\[\[methods\]\] number 1, rates: expected a finite number, got inf$"):
        read_suite(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rank = 8", "rank = 64", "method 'thin + adamw': linears.thin.rank 64 exceeds"),
        ("rank = 8", "rank = 64", "set linears.thin.rank to at most 32"),
        ('dtype = "fp32"', 'dtype = "fp32"\nproducts = "int8"', 'and linears.thin.name = "low_rank" multiplies'),
        ('dtype = "fp32"', 'dtype = "fp32"\nproducts = "int8"', 'set base.train.products = "bf16"'),
        ("betas", "betaz", "method 'dense + adamw': optimizers.adamw.betaz"),
        ("seq_len = 16", "seq_len = 999", "method 'dense + adamw': base.train.seq_len 999 is longer"),
        ("n_layers = 2", "n_layers = 2\nn_layer = 2", "base.model.n_layer: unknown key; did you mean 'n_layers'?"),
    ],
)
def test_what_no_run_could_be_names_its_method(tmp_path, old, new, said):
    path = write_suite(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        make_methods(read_suite(path))
    assert said in str(caught.value)


def test_a_method_that_is_listed_twice(tmp_path):
    path = write_suite(tmp_path, extra=METHODS + "rates = [1.0, 2.0]\n")
    with pytest.raises(UserError, match="listed twice"):
        read_suite(path)


def test_growth_makes_methods_of_its_own(tmp_path):
    grown = "[growths.stack]\nfactor = 2\nat = 0.25\n" + METHODS + 'growth = ["stack"]\nrates = [1e-3, 3e-3]\n'
    methods = make_methods(read_suite(write_suite(tmp_path, extra=grown)))
    assert list(methods) == ["dense + adamw", "thin + adamw", "dense + adamw + stack"]
    assert [len(method.config.stages) for method in methods.values()] == [1, 1, 2]
    run = methods["dense + adamw + stack"].run(3e-3, 7, 100)
    assert run.folder == tmp_path / "suite" / "runs" / "dense+adamw+stack" / "lr-0.003_seed-7"
    assert (run.config.optimizer.lr, run.config.run.seed, run.config.checkpoint.keep) == (3e-3, 7, 1)


def test_a_method_with_a_growth_grows(tmp_path):
    """Else its name would say so of a run that does not."""
    off = "[growths.stack]\nenabled = false\n" + METHODS + 'growth = ["stack"]\nrates = [1e-3, 3e-3]\n'
    with pytest.raises(UserError, match=r"growths\.stack\.enabled: every method that names it grows; leave it out"):
        read_suite(write_suite(tmp_path, extra=off))


def test_keys_on_the_command_line_are_laid_over_the_file(tmp_path):
    suite = write_suite(tmp_path)
    other = ["--suite.dir=elsewhere", "--suite.seeds=[5, 6]", "--base.data.path=data/other", "--linears.thin.rank=3"]
    found = read_suite(suite, other)
    assert (found.suite.dir, found.suite.seeds) == ("elsewhere", (5, 6))
    assert found.base["data"]["path"] == "data/other"
    assert found.linears["thin"]["rank"] == 3
    assert found.methods == read_suite(suite).methods
    for wrong in ("--methods.rates=[1.0]", "--train.seq_len=4", "--suite.dir.name=x"):
        with pytest.raises(UserError, match=r"no key of a suite's table"):
            read_suite(suite, [wrong])
