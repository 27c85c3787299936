"""The table [growth]: a mistake is one sentence before anything else happens, and what is right reads back."""

import math
import re

import pytest
from growth_tables import BLOCK, LOW_RANK, SPARSE, galore, write

from model.errors import UserError
from pretrain.cli import main
from pretrain.config import load_config
from pretrain.config.stages import growth_time
from pretrain.config.write import config_hash, fixed_keys, to_toml

BAD = [
    # the factor
    ("factor = 5", r"growth\.factor 5 does not divide model\.n_layers 12; "),
    ("factor = 24", r"growth\.factor 24 does not divide model\.n_layers 12; "),
    ("factor = [5, 2]\nat = [0.1, 0.2]", r"growth\.factor = \[5, 2\] multiplies the layers by 10, .*\.n_layers 12; "),
    *(
        (
            f"factor = {text}",
            rf"growth\.factor: {re.escape(text)} is no factor of growth; give an integer of at least 2",
        )
        for text in (
            "1",
            "0",
            "-2",
            "2.0",
            "true",
            "[]",
            '[2, "a"]',
            "[2, 1]",
            "[2, 2.0]",
            '"4"',
            "nan",
            "inf",
            "[[2]]",
        )
    ),
    # the layers in place of a factor
    ("factor = 2\nlayers = [3]", r"growth\.factor has no effect with growth\.layers; remove one of them$"),
    *(
        (
            f"layers = {text}",
            rf"growth\.layers: {re.escape(text)} does not say the layers before each growth; give a list",
        )
        for text in ("3", "[0]", "[-1]", "[2.0]", "[true]", '["a"]', '"3"')
    ),
    ("layers = [13]", r"growth\.layers: 13 layers cannot grow to 12, which is fewer"),
    ("layers = [8, 6]\nat = [0.1, 0.2]", r"growth\.layers: 8 layers cannot grow to 6, which is fewer"),
    ("layers = [8]", r"growth\.layers: order 'stack' cannot grow 8 layers to 12; it needs a multiple of 8$"),
    ('layers = [5]\noperator = "solar"', r"growth\.layers: order 'solar' .* an even number of at most 10$"),
    ('layers = [5]\noperator = "gradual"', r"growth\.layers: order 'gradual' .* at most 10$"),
    ('layers = [5]\noperator = "midas"', r"growth\.layers: order 'midas' .* more than 5 by a divisor of it$"),
    ('operator = "solar"', r"growth\.factor: order 'solar' cannot grow 3 layers to 12"),
    ("layers = [12]", r"growth\.layers = \[12\]: from 12 layers to 12 nothing grows; "),
    # the time
    *(
        (f"at = {text}", rf"growth\.at: {re.escape(text)} is no time; give tokens \(an integer\), a part of the run")
        for text in ("0", "-5", "0.0", "1.0", "-0.5", "nan", "inf", "true", '"later"', '"0.5"', '""')
    ),
    *(
        (f"at = {text}", rf"growth\.at: {re.escape(text)} is no time; .* a list of the first two")
        for text in ('["formula"]', '["formula", 0.5]', '[0.5, "x"]', "[0.25, true]", "[0.5, nan]")
    ),
    ("at = []", r"growth\.at: \[\] names no time; give one for each growth$"),
    *(
        (
            f"at = {text}",
            rf"growth\.at = {re.escape(text)} is step {step} of schedule\.total_steps 100 \(256 tokens each\)",
        )
        for text, step in (
            ("25345", 100),
            ("25600", 100),
            ("0.996", 100),
            ("0.001", 0),
            (str(2**63 - 1), 2**55),
        )
    ),
    ("at = 25600", r"; grow between 256 and 25,344 tokens$"),
    ('at = "formula"\nmax_fraction = 1.0', r'growth\.at = "formula" is step 100 .*; lower growth\.max_fraction 1, or '),
    ('at = "formula"\nmax_fraction = 0.001', r"growth\.at = .* is step 0 .*; raise growth\.max_fraction 0\.001, or "),
    *(
        (
            f"factor = [2, 2]\nat = {text}",
            rf"growth\.at = {re.escape(text)} is after the steps {steps}, which do not rise",
        )
        for text, steps in (
            ("[0.5, 0.25]", "50, 25"),
            ("[0.25, 0.25]", "25, 25"),
            ("[0.25, 0.251]", "25, 25"),
            ("[0.5, 10]", "50, 1"),
        )
    ),
    ("factor = [2, 2]", r"growth\.at = 0\.25 gives 1 time, but growth\.factor = \[2, 2\] makes 2 growths; "),
    ('factor = [2, 2]\nat = "formula"', r'growth\.at = "formula" gives 1 time, but growth\.factor = \[2, 2\] makes 2'),
    ("at = [0.25, 0.5]", r"growth\.at = \[0\.25, 0\.5\] gives 2 times, but growth\.factor = 4 makes 1 growth; "),
    ("layers = [3, 6]", r"growth\.at = 0\.25 gives 1 time, but growth\.layers = \[3, 6\] makes 2 growths; "),
    # the formula's own keys
    ("max_fraction = 0.5", r"growth\.max_fraction has no effect with growth\.at = 0\.25; "),
    ('parameters = "trainable"', r"growth\.parameters has no effect with growth\.at = 0\.25; "),
    ('at = "formula"\nparameters = "all"', r"growth\.parameters: .*'dense_equivalent' or 'trainable', got 'all'"),
    *((f'at = "formula"\nmax_fraction = {text}', r"growth\.max_fraction: ") for text in ("0.0", "1.5", "-1.0", "nan")),
    # the operator
    ('operator = "stak"', r"growth\.operator: 'stak' is none of stack, interleave, "),
    ('operator = ""', r"growth\.operator: '' is none of stack"),
    ("operator = 3", r"growth\.operator: "),
    ('operator = "zero"\norder = "stck"', r"growth\.order 'stck' is none of stack, interleave"),
    ('order = "stack"', r"growth\.order has no meaning with growth\.operator = 'stack'"),
    ('operator = "interleave"\nsource_layers = [0]', r"growth\.source_layers has no meaning .* 'interleave'"),
    ('operator = "zero"\nsource_layers = [0]', r"growth\.source_layers has no meaning .* 'zero'"),
    ('operator = "source_layers"\norder = "stack"', r"growth\.order has no meaning .* 'source_layers'"),
    ('operator = "source_layers"', r"growth\.source_layers names 0 layers; .*'s 12$"),
    ('operator = "source_layers"\nsource_layers = [0, 1, 2]', r"growth\.source_layers names 3 layers; .*'s 12$"),
    *(
        (
            f'operator = "source_layers"\nsource_layers = {[0, 1, 2] * 3 + [0, 1, wrong]}',
            rf"growth\.source_layers\[11\] is {wrong}; the small model has layers 0 to 2, ",
        )
        for wrong in (3, -1)
    ),
    (
        'operator = "source_layers"\nsource_layers = [0, 1, 2.0]',
        r"growth\.source_layers\.2: .* valid integer, got 2\.0",
    ),
    (
        f'operator = "source_layers"\nfunction_preserving = true\nsource_layers = {[0, 1] * 6}',
        r"growth\.function_preserving needs every layer .*growth\.source_layers gives 0, 1 of 0 to 2; ",
    ),
    (
        f'operator = "source_layers"\nfactor = [2, 2]\nat = [0.1, 0.2]\nsource_layers = {[0, 1, 2] * 4}',
        r'growth\.operator = "source_layers" describes one growth, but growth\.factor = \[2, 2\] makes 2; ',
    ),
    ("function_preserving = 1", r"growth\.function_preserving: "),
    # what comes after it
    ('optimizer = "keep"', r"growth\.optimizer: .*'reset', 'copy' or 'copy_reset_step', got 'keep'"),
    ('schedule = "again"', r"growth\.schedule: .*'reset' or 'continue', got 'again'"),
    ('schedule = "continue"\nwarmup_fraction = 0.5', r'growth\.warmup_fraction .* growth\.schedule = "continue"; '),
    *((f"warmup_fraction = {text}", r"growth\.warmup_fraction: ") for text in ("1.0", "-0.1", "nan", "inf")),
    *((f"lr = {text}", r"growth\.lr: ") for text in ("-1.0", "nan", "inf", '"x"')),
    *((f"rank = {text}", r"growth\.rank: ") for text in ("-1", "4.0", "true")),
    *((f"density = {text}", r"growth\.density: ") for text in ("-0.1", "1.0", "nan")),
    ("factors = 4", r"growth\.factors: unknown key; did you mean 'factor'\?"),
    ("enabled = 1", r"growth\.enabled: .*true or false, got 1"),
]
BAD_WITH_OTHER_TABLES = [
    ("rank = 4", "", r'growth\.rank has no effect with linear\.name = "dense", which has no rank; '),
    ("density = 0.1", "", r'growth\.density has no effect with linear\.name = "dense", which has no density; '),
    ("density = 0.1", LOW_RANK, r'growth\.density has no effect with linear\.name = "low_rank"'),
    ("density = 0.1", BLOCK, r'growth\.density has no meaning with linear\.support = "block"'),
    *(
        (f"{key} = {value}", SPARSE, rf"growth\.{key} {value} does not divide model\.{key} {large}; ")
        for key, value, large in (
            ("dim", 48, 64),
            ("ffn_dim", 100, 128),
            ("n_heads", 3, 4),
        )
    ),
    ("dim = 128", "", r"growth\.dim 128 is more than model\.dim 64; growth only adds, so give less$"),
    ("n_kv_heads = 8", "", r"growth\.n_kv_heads 8 is more than model\.n_kv_heads 4; "),
    (
        'dim = 32\nwidth = "zero"',
        "",
        r'growth\.dim 32 cannot grow with growth\.width = "zero": zeros among',
    ),
    ('n_kv_heads = 2\nwidth = "zero"', "", r"growth\.n_kv_heads 2 of growth\.n_heads 4 is not the proportion of model"),
    ('width = "zero"', "", r"growth\.width has no effect where nothing grows in width; "),
    ('width = "wide"', "", r"growth\.width: .*'copy' or 'zero', got 'wide'"),
    (
        'ffn_dim = 64\nwidth = "zero"\nshare_spread = 1.0',
        "",
        r"growth\.share_spread has no effect with growth\.width",
    ),
    ('ffn_dim = 64\nwidth = "zero"', BLOCK, r'growth: linear\.support = "block" cannot grow in width'),
    (
        "n_heads = 1\nn_kv_heads = 2",
        SPARSE,
        r"growth: the small model's 1 heads are no multiple of its 2 key and value heads; set growth\.n_kv_heads",
    ),
    ("share_spread = 1.0", "", r"growth\.share_spread has no effect where nothing grows in width; remove it, or set "),
    ("dim = 64\nshare_spread = 0.0", "", r"growth\.share_spread has no effect where nothing grows in width"),
    ("dim = 32\nshare_spread = -1.0", "", r"growth\.share_spread: "),
    ("dim = 32", BLOCK, r'growth: linear\.support = "block" cannot grow in width'),
    (
        "dim = 32",
        galore(8, "*.weight", 'weights = "int8"\n'),
        r'optimizer\.weights = "int8" keeps codes, which have no copy in a wider model',
    ),
    ('dim = 32\noptimizer = "copy"', "", r'growth\.optimizer = "copy" copies moments of the same shape only; .*\.dim,'),
    ("layers = [12]\ndim = 64", SPARSE, r"growth\.layers = \[12\]: from 12 layers to 12 nothing grows; "),
    (
        "layers = [12, 12]\nat = [0.1, 0.2]\ndim = 32",
        "",
        r"growth\.layers = \[12, 12\]: from 12 layers to 12 nothing grows; ",
    ),
    (
        "dim = 4\nn_heads = 1",
        LOW_RANK,
        r"growth: the small model \(model\.n_layers = 3, model\.dim = 4 from growth\.dim, model\.n_heads = 1 from "
        r"growth\.n_heads\): linear\.rank 8 exceeds",
    ),
    ("rank = 9", SPARSE, r"growth\.rank 9 is more than linear\.rank 8; "),
    ("density = 0.31", SPARSE, r"growth\.density 0\.31 is more than linear\.density 0\.3; "),
    ("layers = [12]\nrank = 8", SPARSE, r"growth\.layers = \[12\]: from 12 layers to 12 nothing grows; "),
    (
        "layers = [12, 12]\nat = [0.1, 0.2]\nrank = 4",
        SPARSE,
        r"growth\.layers = \[12, 12\]: from 12 layers to 12 nothing grows; ",
    ),
    ('rank = 4\noptimizer = "copy"', SPARSE, r'growth\.optimizer = "copy" copies moments of the same shape only; '),
    ('density = 0.1\noptimizer = "copy_reset_step"', SPARSE, r'growth\.optimizer = "copy_reset_step" copies moments'),
    (
        'optimizer = "copy"',
        galore(8, "layers.2.*.weight"),
        r'growth\.optimizer = "copy" needs every layer treated alike, but .* attention\.q_proj\.weight in some layers',
    ),
    # other tables that fit the grown model only
    (
        "",
        galore(8, "layers.3.*.weight"),
        r"growth: the small model \(model\.n_layers = 3\): optimizer\.targets 'layers\.3\..* matches nothing; ",
    ),
    (
        "rank = 4",
        SPARSE + galore(8, "*.A"),
        r"growth: the small model \(.*, linear\.rank = 4 from growth\.rank\): optimizer\.rank 8 exceeds .* \(4\); ",
    ),
    (
        "density = 0.0001",
        SPARSE,
        r"growth: the small model \(.*, linear\.density = 0\.0001 from growth\.density\): linear\.density .* leaves",
    ),
    # what fits neither is said of the run, as without growth
    ("", galore(65, "*.weight"), r"optimizer\.rank 65 exceeds the smaller side of layers\.0\.attention\.q_proj"),
    ("", galore(8, "*.weight", 'update = "per_layer"\n'), r'optimizer\.update = "per_layer" steps inside of'),
]


@pytest.mark.parametrize(
    ("growth", "tables", "sentence"),
    [*((growth, "", sentence) for growth, sentence in BAD), *BAD_WITH_OTHER_TABLES],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, capsys, growth, tables, sentence):
    path = write(tmp_path, growth, tables)
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    assert re.search(sentence, message), message
    assert message.startswith(("growth", "optimizer."))
    assert "\n" not in message
    assert main(["train", str(path)]) == 2
    assert capsys.readouterr().err == f"sparlow train: {message}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_of_one_step_cannot_grow(tmp_path):
    with pytest.raises(UserError, match=r"growth\.at: .* schedule\.total_steps 1; set it to at least 2$"):
        load_config(write(tmp_path, 'at = "formula"'), ["--schedule.total_steps=1"])


@pytest.mark.parametrize("override", ["--growth.factor=2", "--growth.at=0.25", "--growth.lr=0.1"])
def test_a_key_without_the_switch_is_refused(override):
    key = override.removeprefix("--").partition("=")[0]
    with pytest.raises(UserError, match=rf"^{re.escape(key)} has no effect without growth\.enabled; "):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("growth", "tables"),
    [
        ("rank = 8\ndensity = 0.3", SPARSE),
        ("density = 0.3", BLOCK),
        ("rank = 4", BLOCK),
        ("dim = 64", BLOCK),
        ("dim = 32\nshare_spread = 0.0", SPARSE),
        ("layers = [12]\nffn_dim = 64", ""),
        ('layers = [12]\nffn_dim = 100\nn_heads = 3\nwidth = "zero"', SPARSE),
        ("layers = [3, 12]\nat = [0.1, 0.2]\nn_heads = 2", LOW_RANK),
        ("rank = 4", LOW_RANK),
        ("layers = [12]\nrank = 4", SPARSE),
        ("layers = [3, 12]\nat = [0.1, 0.2]\ndensity = 0.1", SPARSE),
        ('rank = 8\noptimizer = "copy"', SPARSE),
        ('optimizer = "copy"', galore(8, "*.weight")),
        ("", galore(8, "layers.2.*.weight")),
        ('operator = "zero"\norder = "stack"\nfunction_preserving = true', ""),
        (f'operator = "source_layers"\nsource_layers = {[2, 1] * 6}', ""),
        ('layers = [8]\noperator = "solar"', ""),
        ("at = 25344", ""),
        ("at = 0.005001", ""),
    ],
)
def test_what_looks_like_a_mistake_but_is_none(tmp_path, growth, tables):
    assert load_config(write(tmp_path, growth, tables)).stages[-1].config.model.n_layers == 12


def test_switched_off_the_other_keys_stay(tmp_path):
    """A comparison with a run from scratch by one flag, also where the table would not fit the run."""
    path = write(tmp_path, 'factor = 7\nat = 1\nrank = 3\noptimizer = "copy"\nmax_fraction = 0.5')
    config = load_config(path, ["--growth.enabled=false"])
    assert [(stage.start, stage.end, stage.config.model.n_layers) for stage in config.stages] == [(0, 100, 12)]
    assert config.stages[0].config == config
    with pytest.raises(UserError, match=r"growth\.factor 7"):
        load_config(path, ["--growth.max_fraction=0.1"])


@pytest.mark.parametrize(
    ("overrides", "boundaries", "layers"),
    [
        (["--growth.at=0.5"], [50], [3, 12]),
        (["--growth.at=formula"], [10], [3, 12]),
        (["--growth.at=2560"], [10], [3, 12]),
        (["--growth.factor=[2, 2]", "--growth.at=[0.5, 20000]"], [50, 79], [3, 6, 12]),
        (["--growth.factor=6"], [25], [2, 12]),
        (["--growth.factor=4", "--growth.layers=[6]"], [25], [6, 12]),
    ],
)
def test_overrides(tmp_path, overrides, boundaries, layers):
    stages = load_config(write(tmp_path), overrides).stages
    assert [stage.end for stage in stages] == [*boundaries, 100]
    assert [stage.config.model.n_layers for stage in stages] == layers


@pytest.mark.parametrize(
    ("growth", "tables"),
    [
        ("factor = [2, 3]\nat = [0.25, 12800]\nlr = 0.5", ""),
        ('layers = [3, 6]\nat = [1, 0.5]\noperator = "gradual"\nschedule = "continue"', ""),
        (f'operator = "source_layers"\nsource_layers = {[0, 1, 2] * 4}\nwarmup_fraction = 0.0', ""),
        ('at = "formula"\nmax_fraction = 0.5\nparameters = "trainable"\nrank = 4\ndensity = 0.1', SPARSE),
        ("enabled = false\nfactor = 2", ""),
    ],
)
def test_a_printed_table_reads_back(tmp_path, capsys, growth, tables):
    path = write(tmp_path, growth, tables)
    config = load_config(path)
    assert main(["train", str(path), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert printed == to_toml(config, comments=True)
    path.write_text(printed)
    again = load_config(path)
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert [vars(stage) for stage in again.stages] == [vars(stage) for stage in config.stages]


def test_every_key_decides_what_a_run_computes(tmp_path):
    base = load_config(write(tmp_path))
    keys = {key for key in fixed_keys(base) if key.startswith("growth.")}
    assert keys == {f"growth.{key}" for key in type(base.growth).model_fields}
    for override in ("--growth.at=0.5", "--growth.factor=[4]", "--growth.enabled=false", "--growth.lr=0.1"):
        assert config_hash(load_config(write(tmp_path), [override])) != config_hash(base)


def test_the_formula_counts_dense_parameters_unless_told_otherwise(tmp_path):
    """Dense: 2 x 320 x 64 embedding and head, 64 for the last norm, and in each of 12 layers 4 x 64 x 64 + 3 x 64 x 128
    and two norms of 64. Factored with rank 8: 8 x 128 for a square projection, 8 x 192 for the others."""
    outside = 2 * 320 * 64 + 64
    dense = outside + 12 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    factored = outside + 12 * (4 * 8 * 128 + 3 * 8 * 192 + 2 * 64)
    path = write(tmp_path, 'at = "formula"', LOW_RANK)
    for options, parameters in (([], dense), (["--growth.parameters=trainable"], factored)):
        # 6 N D with D the tokens of the whole run
        expected = parameters**0.88 * 10 ** (163.27 / math.log10(6 * parameters * 25600) - 5.74)
        assert growth_time(load_config(path, options)).formula_tokens == pytest.approx(expected, rel=1e-9)
    assert growth_time(load_config(path, ["--linear.name=dense"])) == growth_time(load_config(path))


def test_the_published_llama_3_8b(tmp_path):
    """8e9 parameters and 15e12 tokens grow after 6.58e9 tokens (arXiv 2405.15319); this shape has 8.03e9."""
    text = """
[model]
n_layers = 32
dim = 4096
n_heads = 32
n_kv_heads = 8
ffn_dim = 14336
vocab_size = 128256
max_seq_len = 8192
[train]
micro_batch_size = 1
global_batch_size = 2048
seq_len = 8192
[schedule]
total_steps = 894070
[growth]
enabled = true
"""
    path = tmp_path / "config.toml"
    path.write_text(text)
    config = load_config(path)
    found = growth_time(config)
    assert found.formula_tokens == pytest.approx(6.58e9, rel=4e-3)
    assert not found.clamped
    assert [stage.end for stage in config.stages] == [round(found.tokens / (2048 * 8192)), 894070]
