"""The configuration: precedence, strictness, and messages that name the key and the fix."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from model.errors import UserError
from pretrain.config import load_config, load_recorded
from pretrain.config.write import config_hash, fixed_keys, to_toml

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.toml"))


SPARSE = "[linear]\nname = 'sparse_low_rank'\nrank = 8\ndensity = 0.1\n"
MUON = "[optimizer]\nname = 'muon'\n"


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_then_file_then_command_line(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[optimizer]\nlr = 0.5\n[train]\nmicro_batch_size = 4\nglobal_batch_size = 8\n")
    config = load_config(path, ["--optimizer.lr=0.25", "--run.dir=007", "--eval.prompts=['a', 'b']"])
    assert config.optimizer.lr == 0.25
    assert config.train.micro_batch_size == 4
    assert config.run.dir == "007"  # a string field takes the text as it stands
    assert config.eval.prompts == ("a", "b")
    assert config.train.seq_len == 256


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optimizer]\nlearning_rate = 1.0", r"optimizer\.learning_rate: .*'adamw'"),
        ("[train]\nsequence_len = 1", r"train\.sequence_len: unknown key; did you mean 'seq_len'\?"),
        ("[trian]\nseq_len = 8", r"trian: unknown table; did you mean 'train'\?"),
        ("[optimizer]\nname = 'adamv'", r"optimizer\.name: unknown name 'adamv'; one of adamw"),
        ("[linear]\nname = 'sparse_lowrank'", r"linear\.name: .*did you mean 'sparse_low_rank'\?"),
        ("[linear]\nname = 'dense'\nrank = 4", r"linear\.rank: not a key of linear 'dense'"),
        ("[linear]\nrank = 4", r"linear\.rank: not a key of linear 'dense'"),
        ("[optimizer]\nmomentum = 0.9", r"optimizer\.momentum: not a key of optimizer 'adamw'; it is for muon, "),
        ("[linear]\nrank = 4", r"not a key of linear 'dense'; it is for low_rank, sparse_low_rank, "),
        ("[kernels]\npath = 'csr'\n[train]\ndtype = 'bf16'\n" + SPARSE, r'kernels\.path = "csr" works on .* fp32'),
        ("[optimizer]\nlr = -1.0", r"optimizer\.lr: .*greater than 0, got -1\.0"),
        ("[optimizer]\nlr = nan", r"optimizer\.lr: .*finite number"),
        ("[optimizer]\nlr = '1'", r"optimizer\.lr: .*valid number, got '1'"),
        ("[train]\nseq_len = true", r"train\.seq_len: .*valid integer, got True"),
        ("[train]\nseq_len = 8.0", r"train\.seq_len: .*valid integer"),
        ("[train]\nmicro_batch_size = 7\nglobal_batch_size = 8", r"train\.global_batch_size 8 is not a multiple"),
        ("[train]\nseq_len = 5000", r"train\.seq_len 5000 is longer than model\.max_seq_len"),
        ("[model]\ndim = 100\nn_heads = 3", r"model: dim 100 is not divisible by n_heads 3"),
        ("[growth]\nfactor = 2", r"growth\.factor has no effect without growth\.enabled"),
        ("[parallel]\nzero_stage = 4", r"parallel\.zero_stage"),
        ("train = 3", r"train: "),
        ("[train", r"not valid TOML"),
        ("[optimizer]\nweights = 'bf16'\n[parallel]\nzero_stage = 2", r"optimizer\.weights = \"bf16\" needs parallel"),
        (
            "[train]\nmax_steps = 20\n[schedule]\ntotal_steps = 10",
            r"train\.max_steps 20 is past schedule\.total_steps 10",
        ),
    ],
)
def test_a_mistake_names_the_key(tmp_path, text, expected):
    assert re.search(expected, refusal(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--optimizer.lr", "expected --section.key=value"),
        ("--optimizer.lr=abc", r"optimizer\.lr: .*'abc'"),
        ("--optimizer.lr=1\nname='x'", r"optimizer\.lr: .*not one TOML value"),
        ("--optimizer.rnk=1", r"optimizer\.rnk"),
        ("--data.packing=concatt", r"data\.packing: .*'concat'"),
    ],
)
def test_a_wrong_override_names_the_key(tmp_path, override, expected):
    assert re.search(expected, refusal(tmp_path, "", override))


def test_another_name_drops_the_file_keys_it_does_not_know(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text("[linear]\nname = 'sparse_low_rank'\nrank = 8\nalpha = 4.0\ndensity = 0.1\n")
    assert load_config(path, ["--linear.name=dense"]).linear.name == "dense"
    assert "drops from the file: rank, alpha, density" in capsys.readouterr().err
    low_rank = load_config(path, ["--linear.rank=16", "--linear.name=low_rank"]).linear
    assert (low_rank.name, low_rank.rank) == ("low_rank", 16)
    assert "density" in refusal(tmp_path, path.read_text(), "--linear.name=low_rank", "--linear.density=0.1")


@pytest.mark.parametrize(
    ("name", "key", "value", "default", "users"),
    [
        ("muon", "rank", "64", "128", "apollo, apollo_mini, fira, "),
        ("muon", "scale", "0.5", "0.25", "apollo, "),
        ("muon", "projector", '"svd"', '"subspace_iteration"', "apollo, apollo_mini, fira, frugal, "),
        ("muon", "rotate_moments", "true", "false", "apollo, "),
        ("ldadam", "update_proj_gap", "7", "200", "apollo, "),
        ("online_subspace", "refresh_stagger", "false", "true", "apollo, "),
        ("subtrack", "projector", '"svd"', '"subspace_iteration"', "apollo, "),
        ("fira", "accumulators", '"host"', '"device"', "galore_adamw, "),
    ],
)
def test_a_key_that_the_optimizer_ignores_is_refused(tmp_path, name, key, value, default, users):
    said = refusal(tmp_path, f"[optimizer]\nname = '{name}'\n{key} = {value}\n")
    assert said.startswith(f'optimizer.{key} = {value} has no effect with optimizer.name = "{name}"; ')
    assert f"; leave it out or set {default}; it is for {users}" in said
    assert name not in said.rpartition("; it is for ")[2].split(", ")


def test_what_is_ignored_is_neither_written_nor_kept_under_another_name(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(MUON + "lr = 0.5\n")
    assert "proj" not in to_toml(load_config(path))
    assert "momentum = 0.95" in to_toml(load_config(path))
    path.write_text(
        "[optimizer]\nname = 'galore_adamw'\nlr = 0.5\nrank = 4\nscale = 1.0\ntargets = ['*.q_proj.weight']\n"
    )
    muon = load_config(path, ["--optimizer.name=muon"]).optimizer
    assert (muon.name, muon.lr, muon.targets) == ("muon", 0.5, ("*.q_proj.weight",))
    assert capsys.readouterr().err == "optimizer.name=muon drops from the file: rank, scale\n"
    assert "optimizer.rank = 8 has no effect" in refusal(
        tmp_path, path.read_text(), "--optimizer.name=muon", "--optimizer.rank=8"
    )


def test_a_run_that_recorded_what_its_optimizer_ignores_is_still_read(tmp_path):
    """Earlier versions wrote every key, with any value."""
    path = tmp_path / "config.toml"
    path.write_text(MUON + "rank = 64\nprojector = 'svd'\nmomentum = 0.9\n")
    recorded = load_recorded(path)
    assert fixed_keys(recorded) == fixed_keys(load_config(None, ["--optimizer.name=muon", "--optimizer.momentum=0.9"]))
    with pytest.raises(UserError, match=r"optimizer\.projector = \"svd\" has no effect"):
        load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_written_toml_reads_back_equal(path, tmp_path):
    config = load_config(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(to_toml(config, comments=True))
    assert load_config(copy) == config
    assert config_hash(load_config(copy)) == config_hash(config)


def test_every_key_is_documented():
    lines = to_toml(load_config(None), comments=True).splitlines()
    undocumented = [
        line
        for before, line in pairwise(lines)
        if "=" in line and not line.startswith("#") and not before.startswith("#") and not line.startswith("name =")
    ]
    assert undocumented == []


def test_a_resume_may_change_only_what_does_not_change_the_result():
    base = load_config(None)
    free = ["--run.dir=elsewhere", "--train.max_steps=5", "--checkpoint.keep=9", "--eval.every=7", "--metrics.every=3"]
    assert fixed_keys(load_config(None, free)) == fixed_keys(base)
    for override in ("--optimizer.lr=0.1", "--run.seed=1", "--train.grad_clip=0.5", "--schedule.total_steps=11"):
        assert config_hash(load_config(None, [override])) != config_hash(base)
