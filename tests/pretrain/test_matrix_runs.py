"""Runs with matrix optimizers: what they log, resume, refuse, and how they share work over processes."""

import json

import pytest
from support import logged, tensor_hashes, train_here

from model.errors import UserError
from pretrain.config import load_config

DENSE = ["--linear.name=dense"]
GALORE = [*DENSE, "--optimizer.name=galore_adamw", "--optimizer.rank=8", "--optimizer.update_proj_gap=5"]


def test_galore_trains_logs_and_counts(tiny, tmp_path):
    train_here(tiny, *GALORE, "--train.max_steps=12")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["low_rank_matrices"] == 14
    assert summary["reduced_bytes_per_step"] == 0  # one process
    losses = [float(loss) for loss in logged(tmp_path / "run").values()]
    assert losses[-1] < losses[0] - 0.05
    assert set(logged(tmp_path / "run", "train/grad_norm_projected")) == set(range(1, 13))
    assert not logged(tmp_path / "run", "train/grad_norm")


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.parametrize("pause", [4, 5, 6])
def test_resume_across_a_refresh_is_exact(tiny, tmp_path, pause):
    straight, paused = tmp_path / "straight", tmp_path / "paused"
    train_here(tiny, *GALORE, f"--run.dir={straight}", "--train.max_steps=8")
    train_here(tiny, *GALORE, f"--run.dir={paused}", f"--train.max_steps={pause}")
    train_here(tiny, *GALORE, f"--run.dir={paused}", "--train.max_steps=8")
    assert tensor_hashes(straight, 8) == tensor_hashes(paused, 8)
    assert logged(straight) == logged(paused)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--parallel.zero_stage=1"], r"needs parallel\.zero_stage = 0"),
        (["--optimizer.rank=33"], r"optimizer\.rank 33 exceeds the smaller side"),
        (['--optimizer.targets=["nothing"]'], r"optimizer\.targets 'nothing' matches nothing"),
        (['--optimizer.targets=["tok_emb*"]'], r"tok_embeddings\.weight, which is never projected"),
        (["--model.tie_embeddings=true", '--optimizer.targets=["lm_head*", "tok*"]'], r"matches"),
        (["--model.tie_embeddings=true", "--optimizer.name=scale"], r"tie_embeddings = true makes them one"),
        (["--optimizer.factor_lr_ratio=4.0"], r"factor_lr_ratio has no effect"),
        (["--optimizer.update=per_layer"], r"train\.global_batch_size = train\.micro_batch_size"),
        (["--optimizer.update=per_layer", "--train.global_batch_size=2"], r"train\.grad_clip = 0\.0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny, [*GALORE, *overrides])


def test_a_factor_below_its_own_rank_is_refused(tiny):
    sparse = ["--optimizer.name=galore_adamw", '--optimizer.targets=["*.A"]']
    with pytest.raises(UserError, match=r"factor of rank 8.*takes AdamW"):
        load_config(tiny, [*sparse, "--optimizer.rank=4"])
    load_config(tiny, [*sparse, "--optimizer.rank=8"])


def test_factors_alone_leave_nothing_to_project(tiny):
    with pytest.raises(UserError, match=r"nothing to project.*adamw"):
        load_config(tiny, [text for text in GALORE if text not in DENSE])


def test_another_preset_does_not_go_on_from_here(tiny):
    train_here(tiny, *GALORE, "--train.max_steps=1")
    with pytest.raises(UserError, match=r"optimizer\.name was 'galore_adamw', is 'galore_adamw8bit'"):
        train_here(tiny, *[text.replace("galore_adamw", "galore_adamw8bit") for text in GALORE])


@pytest.mark.fault("F1")
def test_updates_inside_of_the_backward_pass_resume_and_report(tiny, tmp_path):
    """The same run as with updates after it, with the learning rate of each step, and exact over a pause."""
    common = [*GALORE, "--train.global_batch_size=2", "--train.grad_clip=0.0"]
    after, inside, paused = (tmp_path / name for name in ("after", "inside", "paused"))
    train_here(tiny, *common, f"--run.dir={after}", "--train.max_steps=8")
    per_layer = [*common, "--optimizer.update=per_layer"]
    train_here(tiny, *per_layer, f"--run.dir={inside}", "--train.max_steps=8")
    train_here(tiny, *per_layer, f"--run.dir={paused}", "--train.max_steps=5")
    train_here(tiny, *per_layer, f"--run.dir={paused}", "--train.max_steps=8")
    assert tensor_hashes(inside, 8) == tensor_hashes(paused, 8)
    for key in ("train/loss", "train/lr", "train/grad_norm_projected"):
        one, other = (list(map(float, logged(run, key).values())) for run in (after, inside))
        assert one == pytest.approx(other, rel=1e-5), key


@pytest.mark.fault("F1")
@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer.weights=bf16_stochastic", "--train.dtype=bf16"],
        ["--optimizer.update=per_layer", "--train.global_batch_size=2", "--train.grad_clip=0.0"],
    ],
    ids=["step", "per_layer"],
)
def test_adamw8bit_resumes_exactly_and_moves_every_tensor(tiny, tmp_path, options):
    common = ["--optimizer.name=adamw8bit", *options]
    straight, paused = tmp_path / "straight", tmp_path / "paused"
    for run, pauses in ((straight, (6,)), (paused, (2, 6))):
        for last in pauses:
            train_here(tiny, *common, f"--run.dir={run}", f"--train.max_steps={last}", "--checkpoint.every=2")
    assert tensor_hashes(straight, 6) == tensor_hashes(paused, 6)
    early, late = tensor_hashes(straight, 2), tensor_hashes(straight, 4)
    trained = [name for name in early if name.startswith("model.") and not name.endswith(("index", "indices"))]
    same = [name for name in trained if early[name] == late[name]]
    assert all("support" in name for name in same), same


def test_adamw8bit_is_refused_where_it_cannot_work(tiny):
    name = "--optimizer.name=adamw8bit"
    for options, message in (
        (["--parallel.zero_stage=2"], r"adamw8bit\" needs parallel\.zero_stage = 0"),
        (["--optimizer.update=per_layer"], r"train\.global_batch_size = train\.micro_batch_size"),
        (["--optimizer.rank=8"], r"optimizer\.adamw8bit\.rank|optimizer\.rank"),
        (["--optimizer.weights=int8"], r"optimizer.*weights"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(tiny, [name, *options])


def test_sums_may_move_to_host_memory_on_resume(tiny, tmp_path):
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    train_here(tiny, *GALORE, f"--run.dir={straight}", "--train.max_steps=6")
    train_here(tiny, *GALORE, f"--run.dir={moved}", "--train.max_steps=3")
    train_here(tiny, *GALORE, f"--run.dir={moved}", "--train.max_steps=6", "--optimizer.accumulators=host")
    assert tensor_hashes(straight, 6) == tensor_hashes(moved, 6)
