"""`sparlow plan` of a run that grows: its stages, what they cost, and a formula that asks for too much."""

import json
import re

import pytest
from growth_tables import LOW_RANK, SPARSE, write

from pretrain.cli import main

NARROW = ["--growth.enabled=false", "--model.dim=32", "--model.n_heads=2", "--model.ffn_dim=64"]


def json_of(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_plan_says_the_stages(tmp_path, capsys):
    path = write(tmp_path, "factor = [2, 2]\nat = [0.25, 12800]\nlr = 0.5", LOW_RANK)
    assert main(["plan", str(path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    stages = figures["stages"]
    assert [(stage["n_layers"], stage["steps"], stage["tokens"]) for stage in stages] == [
        (3, 25, 6400),
        (6, 25, 6400),
        (12, 50, 12800),
    ]
    for key in ("steps", "tokens", "flops", "flops_dense_equivalent"):
        assert sum(stage[key] for stage in stages) == pytest.approx(figures[key], rel=1e-12)
    # A layer costs the same in every stage, and so does what is outside of the layers.
    per_step = [stage["flops"] / stage["steps"] for stage in stages]
    assert per_step[2] - per_step[1] == pytest.approx(2 * (per_step[1] - per_step[0]), rel=1e-12)

    assert main(["plan", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" tokens")[0] for line in lines if line.startswith("stage")] == [
        "stage 1 of 3: 3 layers to step 25, 6,400",
        "stage 2 of 3: 6 layers to step 50, 6,400",
        "stage 3 of 3: 12 layers to step 100, 12,800",
    ]
    assert [line.rpartition(" ")[2] for line in lines if line.startswith("stage")] == ["0.5", "0.5", "0.003"]


def test_a_stage_is_told_with_what_grows(tmp_path, capsys):
    assert main(["plan", str(write(tmp_path, "layers = [1]\nrank = 4", SPARSE))]) == 0
    told = [line.partition(" to step")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("stage")]
    assert told == ["stage 1 of 2: 1 layer of rank 4", "stage 2 of 2: 12 layers of rank 8"]


def test_a_narrow_stage_costs_what_its_model_does(tmp_path, capsys):
    path = write(tmp_path, "layers = [12]\ndim = 32\nn_heads = 2\nffn_dim = 64")
    small, alone = (json_of(capsys, "plan", str(path), *options) for options in ([], NARROW))
    stage = small["stages"][0]
    assert stage["flops"] / stage["steps"] == alone["flops"] / alone["steps"]
    assert small["stages"][1]["flops"] / small["stages"][1]["steps"] > 2 * stage["flops"] / stage["steps"]
    assert main(["plan", str(path)]) == 0
    told = [line.partition(" to step")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("stage")]
    assert told == [
        "stage 1 of 2: 12 layers of dim 32 and ffn_dim 64 and n_heads 2",
        "stage 2 of 2: 12 layers of dim 64 and ffn_dim 128 and n_heads 4",
    ]


def test_times_in_tokens_count_padding_and_say_so(tmp_path, capsys):
    path, packed = write(tmp_path, "at = 12800"), "--data.packing=document"
    assert main(["plan", str(path), packed]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("stage 1"))
    assert "to step 50, 12,800 tokens with padding, " in first
    assert main(["plan", str(path), packed, "--growth.at=1_000_000_000"]) == 2
    said = capsys.readouterr().err
    assert "(256 tokens with padding each); grow between 256 and 25,344 tokens with padding" in said
    assert main(["plan", str(path)]) == 0
    assert "padding" not in capsys.readouterr().out


def test_plan_says_where_the_formula_asks_for_too_much(tmp_path, capsys):
    assert main(["plan", str(write(tmp_path, 'at = "formula"'))]) == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if "growth.at" in line)
    assert re.fullmatch(
        r"growth\.at: the formula asks for \S+ tokens, more than growth\.max_fraction 0\.1 .* 2,560", warning
    )
    longer = "--schedule.total_steps=1_000_000_000_000"  # the formula falls as the run grows
    for overrides in (["--growth.at=0.5"], ["--growth.at=formula", longer]):
        assert main(["plan", str(write(tmp_path)), *overrides]) == 0
        assert "growth.at" not in capsys.readouterr().out


def test_plan_without_growth_has_one_stage(tmp_path, capsys):
    assert main(["plan", str(write(tmp_path)), "--growth.enabled=false", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    (stage,) = figures["stages"]
    assert stage == {"n_layers": 12} | {key: figures[key] for key in stage if key != "n_layers"}
    assert main(["plan", str(write(tmp_path)), "--growth.enabled=false"]) == 0
    assert "stage" not in capsys.readouterr().out
