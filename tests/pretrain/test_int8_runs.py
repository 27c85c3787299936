"""Runs with weights in 8-bit codes: they train, resume byte for byte, and refuse what they cannot do."""

import json

import pytest
import torch
from memory import LiveMemory
from support import logged, tensor_hashes, train_here

from model.build import build_model
from model.errors import UserError
from model.linear.int8 import Int8Linear
from pretrain.checkpoint.read import load_model, open_checkpoint
from pretrain.config import load_config
from pretrain.loop.build import build
from pretrain.optim.weight import Int8Weight
from pretrain.using.export import export

DENSE = "--linear.name=dense"
Q_GALORE = [DENSE, "--optimizer.name=q_galore", "--optimizer.rank=8", "--optimizer.update_proj_gap=2"]
PER_LAYER = ["--optimizer.update=per_layer", "--train.global_batch_size=2", "--train.grad_clip=0.0"]
CPU = torch.device("cpu")


def tensors(run):
    checkpoint = open_checkpoint(run)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def test_trains_counts_and_keeps_everything_in_codes(tiny, tmp_path):
    train_here(tiny, *Q_GALORE, "--train.max_steps=12")
    run = tmp_path / "run"
    losses = [float(loss) for loss in logged(run).values()]
    assert losses[-1] < losses[0] - 0.05
    assert json.loads((run / "summary.json").read_text())["low_rank_matrices"] == 14
    refreshes = [int(text) for text in logged(run, "train/refreshes").values()]
    assert refreshes == sorted(refreshes)
    assert refreshes[-1] > 14
    kept = tensors(run)
    q = "layers.0.attention.q_proj"
    assert kept[f"model.{q}.codes"].dtype == torch.uint8
    assert f"model.{q}.weight" not in kept
    assert kept[f"optimizer.{q}.weight.P_codes"].dtype == torch.uint8
    assert kept[f"optimizer.{q}.weight.P_codes"].nbytes == 32 * 8 // 2
    assert kept[f"optimizer.{q}.weight.exp_avg"].dtype == torch.uint8
    model = load_model(open_checkpoint(run), CPU)
    assert torch.equal(model.layers[0].attention.q_proj.codes, kept[f"model.{q}.codes"])


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.parametrize(
    ("options", "pause"),
    [
        ([], 5),
        (["--optimizer.update_proj_gap=1", "--optimizer.refresh_stagger=false"], 9),  # gaps have doubled by then
        (PER_LAYER, 5),
        (["--train.dtype=bf16"], 5),
        (["--optimizer.name=fira"], 5),
    ],
    ids=lambda value: "-".join(text.rpartition(".")[2] for text in value) if isinstance(value, list) else str(value),
)
def test_resume_across_refreshes_is_exact(tiny, tmp_path, options, pause):
    common = [*Q_GALORE, "--optimizer.weights=int8", *options]
    if "--optimizer.name=fira" in options:
        common.remove("--optimizer.name=q_galore")
    straight, paused = tmp_path / "straight", tmp_path / "paused"
    train_here(tiny, *common, f"--run.dir={straight}", "--train.max_steps=12")
    train_here(tiny, *common, f"--run.dir={paused}", f"--train.max_steps={pause}")
    train_here(tiny, *common, f"--run.dir={paused}", "--train.max_steps=12")
    assert tensor_hashes(straight, 12) == tensor_hashes(paused, 12)
    assert logged(straight) == logged(paused)
    assert logged(straight, "train/refreshes") == logged(paused, "train/refreshes")
    if "--optimizer.update_proj_gap=1" in options:
        gaps = {t[1].item() for name, t in tensors(paused).items() if name.endswith(".refresh")}
        assert max(gaps) > 1


def test_every_tensor_of_the_model_moves_inside_of_the_backward_pass(tiny, tmp_path):
    """Embedding, head and norms too, which the released per-layer mode leaves as they were."""
    options = [*Q_GALORE, *PER_LAYER, "--schedule.warmup_fraction=0.0"]
    train_here(tiny, *options, "--train.max_steps=2")
    start = build(open_checkpoint(tmp_path / "run").config, CPU).state_dict()
    kept = tensors(tmp_path / "run")
    still = [name for name, tensor in start.items() if torch.equal(tensor, kept[f"model.{name}"])]
    assert [name for name in still if not name.endswith(".zeros")] == []
    assert len(start) == 1 + 1 + 1 + 2 * (2 + 7 * 3)


def test_micro_steps_make_the_step_of_the_whole_batch(tiny, tmp_path):
    for size in (8, 2):
        train_here(
            tiny, *Q_GALORE, f"--train.micro_batch_size={size}", f"--run.dir={tmp_path}/{size}", "--train.max_steps=6"
        )
    one, other = (list(map(float, logged(tmp_path / str(size)).values())) for size in (8, 2))
    assert one == pytest.approx(other, rel=1e-3)
    norms = [list(map(float, logged(tmp_path / str(n), "train/grad_norm_projected").values())) for n in (8, 2)]
    assert norms[0] == pytest.approx(norms[1], rel=2e-2)


def test_recomputed_activations_change_nothing(tiny, tmp_path):
    for every in (0, 1):
        options = [f"--train.checkpoint_every_layers={every}", f"--run.dir={tmp_path}/{every}"]
        train_here(tiny, *Q_GALORE, *options, "--train.max_steps=4")
    assert tensor_hashes(tmp_path / "0", 4) == tensor_hashes(tmp_path / "1", 4)


@pytest.mark.slow
def test_rounding_to_nearest_learns_less(tiny, tmp_path, monkeypatch):
    """At a rate whose steps are below half a code, weights that are rounded to nearest stay where they are."""
    final = {}
    changing = Int8Weight.changing
    for kind in ("stochastic", "nearest"):
        if kind == "nearest":
            monkeypatch.setattr(Int8Weight, "changing", lambda weight, key: changing(weight, None))
        options = [f"--run.dir={tmp_path}/{kind}", "--optimizer.lr=2e-3", "--optimizer.scale=0.05"]
        train_here(tiny, *Q_GALORE, *options, "--train.max_steps=60")
        final[kind] = float(logged(tmp_path / kind)[60])
    assert final["nearest"] > final["stochastic"] + 0.02


def test_an_int8_checkpoint_goes_on_with_int8_alone(tiny):
    train_here(tiny, *Q_GALORE, "--train.max_steps=1")
    with pytest.raises(UserError, match=r"optimizer\.weights was 'int8', is 'fp32_master'"):
        train_here(tiny, *Q_GALORE, "--optimizer.weights=fp32_master")


def test_a_float_checkpoint_does_not_go_on_with_int8(tiny):
    train_here(tiny, *Q_GALORE, "--optimizer.weights=fp32_master", "--train.max_steps=1")
    with pytest.raises(UserError, match=r"optimizer\.weights was 'fp32_master', is 'int8'"):
        train_here(tiny, *Q_GALORE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--parallel.zero_stage=1"], r"needs parallel\.zero_stage = 0"),
        (["--linear.name=sparse_low_rank"], r'linear\.name = "sparse_low_rank".*optimizer\.weights = "int8"'),
        (["--linear.name=low_rank"], r'linear\.name = "low_rank".*optimizer\.weights = "int8"'),
        (['--optimizer.targets=["*q_proj.weight"]'], r'optimizer\.targets leaves out.*optimizer\.weights = "int8"'),
        (["--optimizer.max_proj_gap=1"], r"optimizer\.max_proj_gap 1 is less"),
        (["--optimizer.rotate_moments=true"], r"optimizer\.rotate_moments needs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny, [*(text for text in Q_GALORE if text != DENSE or "linear" not in overrides[0]), *overrides])


def test_adamw_has_no_int8_weights(tiny):
    with pytest.raises(UserError, match=r"optimizer\.weights: .*got 'int8'"):
        load_config(tiny, [DENSE, "--optimizer.weights=int8"])


def test_every_part_of_q_galore_can_be_another(tiny, tmp_path):
    options = ["--optimizer.weights=fp32_master", "--optimizer.projection=fp32", "--optimizer.refresh=fixed"]
    options += [
        "--optimizer.moments=fp32",
        "--optimizer.eps=1e-6",
        "--optimizer.eps_mode=galore",
        "--train.max_steps=4",
    ]
    train_here(tiny, *Q_GALORE, *options, f"--run.dir={tmp_path}/q")
    galore = [text.replace("q_galore", "galore_adamw") for text in Q_GALORE]
    train_here(tiny, *galore, "--train.max_steps=4", f"--run.dir={tmp_path}/galore")
    assert tensor_hashes(tmp_path / "q", 4) == tensor_hashes(tmp_path / "galore", 4)


def test_persistent_bytes_of_the_model(tiny):
    """1.03 bytes per element of the linears at a width of 256 and more."""
    config = load_config(tiny, [*Q_GALORE, "--model.dim=256", "--model.ffn_dim=688"])
    shape = {"param_dtype": torch.bfloat16, "compute_dtype": torch.bfloat16}
    with LiveMemory() as memory:
        model = build_model(config.model, config.linear, seed=0, device="cpu", int8=True, **shape)
    linears = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, Int8Linear))
    rest = sum(p.nbytes for p in model.parameters())
    assert memory.live - rest <= 1.03 * linears


GROWTH = ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.5", "--schedule.total_steps=4"]


@pytest.mark.parametrize("optimizer", ["reset", "copy", "copy_reset_step"])
def test_growth_copies_codes(tiny, tmp_path, optimizer):
    train_here(tiny, *Q_GALORE, *GROWTH, f"--growth.optimizer={optimizer}")
    kept = open_checkpoint(tmp_path / "run/checkpoints/step-00000002-grown")
    for part in ("codes", "scales", "zeros"):
        first, second = (kept.read(f"model.layers.{i}.attention.q_proj.{part}") for i in (0, 1))
        assert torch.equal(first, second)
    assert float(logged(tmp_path / "run")[4]) > 0


@pytest.mark.parametrize("option", ["operator=zero", "function_preserving=true"])
def test_growth_with_silent_layers_is_refused(tiny, option):
    with pytest.raises(UserError, match=r'growth\.operator = "zero".*optimizer\.weights = "int8"'):
        load_config(tiny, [*Q_GALORE, *GROWTH, f"--growth.{option}"])


def test_exports_what_the_codes_stand_for(tiny, tmp_path):
    train_here(tiny, *Q_GALORE, "--train.max_steps=1")
    report = export(str(tmp_path / "run"), str(tmp_path / "hf"), dtype="fp32", overwrite=False)
    assert report["parameters"] == 39008
    assert report["max_logit_difference"] == 0
