"""How linears compute is chosen once, logged, recorded, and the same after a resume; and every choice trains alike."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support import logged, tensor_hashes, train_here

from kernels import measured
from kernels.sparse_low_rank_linear import Choice, choice, csr, dense
from model.build import build_model
from model.errors import UserError
from model.linear import SparseLowRank
from pretrain.checkpoint.read import Checkpoint, load_model
from pretrain.config import load_config
from pretrain.data.dataset import Batch
from pretrain.engine import kernel_choices
from pretrain.engine.build import build_engine
from pretrain.loop.build import build
from pretrain.machine import distributed
from pretrain.machine.hardware import free_bytes

CPU = torch.device("cpu")


def decided(tiny, *overrides, recorded=None, micro_steps=4, free=10**9, monkeypatch=None, dtype=torch.bfloat16):
    config = load_config(tiny, list(overrides))
    model = build_model(
        config.model, config.linear, seed=0, device="cpu", param_dtype=torch.float32, compute_dtype=dtype,
        checkpoint_every=config.train.checkpoint_every_layers,
    )  # fmt: skip
    monkeypatch.setattr(kernel_choices, "free_bytes", lambda device: free)
    record = kernel_choices.decide(model, config, recorded or {}, micro_steps, CPU)
    kernel_choices.apply(model, record)
    choices = {m.support.choice for m in model.modules() if isinstance(m, SparseLowRank)}
    assert len(choices) == 1
    return choices.pop()


# bf16 W of the tiny model: 2 layers x (4 x 32 x 32 + 3 x 32 x 53) x 2 bytes
WEIGHTS = 2 * (4 * 32 * 32 + 3 * 32 * 53) * 2


@pytest.mark.parametrize(
    ("free", "micro_steps", "overrides", "expected"),
    [
        (10**9, 4, [], Choice(keep="step", accumulate=True)),
        (10**9, 1, [], Choice(keep="layer")),  # one micro-step: nothing to share
        (5 * WEIGHTS, 4, [], Choice(keep="step")),  # no room for the fp32 sum beside W
        (5 * WEIGHTS - 10, 4, [], Choice()),
        (2.5 * WEIGHTS + 10, 4, ["--train.products=int8"], Choice(keep="step")),  # codes are half of bf16
        (2.5 * WEIGHTS - 10, 4, ["--train.products=fp8"], Choice()),
        (5 * WEIGHTS - 10, 4, ["--train.checkpoint_every_layers=1"], Choice(keep="layer")),
        (10**9, 4, ["--parallel.zero_stage=1"], Choice(keep="step")),
        (10**9, 4, ["--parallel.zero_stage=3"], Choice(keep="layer")),
        (10**9, 4, ["--kernels.cache_budget=0.0"], Choice()),
        (10**9, 4, ["--kernels.keep_weight=none"], Choice()),
        (0, 4, ["--kernels.keep_weight=step"], Choice(keep="step")),
        (0, 4, ["--kernels.keep_weight=step", "--kernels.sum_gradients=dense"], Choice(keep="step", accumulate=True)),
        (10**9, 4, ["--kernels.sum_gradients=factors"], Choice(keep="step")),
    ],
)
def test_keeps_as_long_as_memory_allows_and_work_is_saved(tiny, free, micro_steps, overrides, expected, monkeypatch):
    assert decided(tiny, *overrides, free=free, micro_steps=micro_steps, monkeypatch=monkeypatch) == expected


def test_summed_gradients_reach_the_factors_once_a_step(tiny):
    config = load_config(tiny, ["--kernels.keep_weight=step", "--kernels.sum_gradients=dense"])
    engine = build_engine(build(config, CPU), config, distributed.start(), grad_accum_steps=4)
    kernel_choices.apply(engine.model, kernel_choices.decide(engine.model, config, {}, 4, CPU))
    factors = [p for name, p in engine.model.named_parameters() if name.endswith((".A", ".B", ".values"))]
    tokens = torch.randint(320, (2, 16), generator=torch.Generator().manual_seed(0))
    engine.begin(1e-3)
    for reached in (False, False, False, True):
        engine.micro_step(Batch(tokens, tokens), 8 * 16)
        assert {p.grad is not None for p in factors} == {reached}
    engine.close()


def test_a_record_stands_whatever_the_memory_is_now(tiny, monkeypatch):
    choice = Choice(keep="step").to_json()
    shapes = {f"{shape} rank 8": choice for shape in ("32x32", "53x32", "32x53")}
    recorded = {"device": "cpu", "shapes": shapes}
    assert decided(tiny, recorded=recorded, free=0, monkeypatch=monkeypatch) == Choice(keep="step")
    other = recorded | {"device": "cuda"}
    assert decided(tiny, recorded=other, free=0, monkeypatch=monkeypatch) == Choice()


def test_a_record_of_another_model_is_refused(tiny, monkeypatch):
    recorded = {"device": "cpu", "shapes": {"64x64 rank 8": Choice().to_json()}}
    with pytest.raises(UserError, match=r"32x32 rank 8"):
        decided(tiny, recorded=recorded, monkeypatch=monkeypatch)


def test_csr_where_it_cannot_work_is_refused(tiny, monkeypatch):
    with pytest.raises(UserError, match=r"kernels\.path = \"csr\""):
        decided(tiny, "--kernels.path=csr", monkeypatch=monkeypatch)
    assert decided(tiny, "--kernels.path=csr", monkeypatch=monkeypatch, dtype=torch.float32).path == "csr"


def test_products_in_eight_bits_need_a_matrix(tiny, monkeypatch):
    """Where csr is the fastest, W is built nevertheless."""
    monkeypatch.setattr(choice, "CSR_SMALLEST_SIDE", 1)
    monkeypatch.setattr(choice, "fastest", lambda *arguments: "csr")
    options = {"monkeypatch": monkeypatch, "dtype": torch.float32}
    assert decided(tiny, **options).path == "csr"
    assert decided(tiny, "--train.products=int8", **options).path == "dense"


BUDGET = ["--kernels.cache_budget=0.5"]


@pytest.mark.parametrize("overrides", [[], ["--kernels.sum_gradients=factors"], ["--kernels.keep_weight=step"]])
def test_a_budget_that_decides_something_is_taken(tiny, overrides):
    assert load_config(tiny, BUDGET + overrides).kernels.cache_budget == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--linear.name=dense", "--kernels.keep_weight=step"], r"kernels\.keep_weight has no effect"),
        (["--kernels.path=csr", "--kernels.keep_weight=layer"], r"builds no W"),
        ([*BUDGET, "--kernels.path=csr"], r"kernels\.cache_budget has no effect"),
        ([*BUDGET, "--kernels.keep_weight=layer"], r"kernels\.cache_budget has no effect"),
        ([*BUDGET, "--kernels.keep_weight=step", "--kernels.sum_gradients=dense"], r"cache_budget has no effect"),
        ([*BUDGET, "--kernels.keep_weight=step", "--parallel.zero_stage=1"], r"cache_budget has no effect"),
        (["--kernels.sum_gradients=dense"], r"needs kernels\.keep_weight"),
        (["--kernels.keep_weight=step", "--parallel.zero_stage=3"], r"zero_stage = 3"),
    ],
)
def test_what_would_be_ignored_is_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny, overrides)


CHOICES = {
    "none": ["--kernels.keep_weight=none"],
    "layer": ["--kernels.keep_weight=layer"],
    "step": ["--kernels.keep_weight=step", "--kernels.sum_gradients=factors"],
    "summed": ["--kernels.keep_weight=step", "--kernels.sum_gradients=dense"],
    "csr": ["--kernels.path=csr"],
    "recomputed": ["--train.checkpoint_every_layers=1"],
    "stage1": ["--parallel.zero_stage=1", "--kernels.keep_weight=step"],
}


def test_every_choice_trains_alike_and_resumes_exactly(tiny, tmp_path):
    losses = {}
    for name, overrides in CHOICES.items():
        straight, paused = tmp_path / f"{name}-straight", tmp_path / f"{name}-paused"
        train_here(tiny, *overrides, f"--run.dir={straight}", "--train.max_steps=6")
        train_here(tiny, *overrides, f"--run.dir={paused}", "--train.max_steps=3")
        train_here(tiny, *overrides, f"--run.dir={paused}", "--train.max_steps=6")
        assert tensor_hashes(straight, 6) == tensor_hashes(paused, 6), name
        assert logged(straight) == logged(paused), name
        losses[name] = [float(loss) for loss in logged(straight).values()]
    for name, values in losses.items():
        assert values == pytest.approx(losses["none"], rel=1e-5), name


def test_the_choice_is_recorded_and_followed(tiny, tmp_path, monkeypatch, capsys):
    train_here(tiny, "--train.max_steps=2")
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())
    shapes = state["kernels"]["shapes"]
    assert state["kernels"]["device"] == "cpu"
    assert set(shapes) == {"32x32 rank 8", "53x32 rank 8", "32x53 rank 8"}
    assert {fields["keep"] for fields in shapes.values()} == {"step"}
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    monkeypatch.setattr(kernel_choices, "free_bytes", lambda device: 0)
    capsys.readouterr()
    train_here(tiny, "--train.max_steps=3")
    assert "53x32 rank 8: W kept over the step, its gradient summed" in capsys.readouterr().out


@pytest.mark.parametrize(("free", "builds"), [(10**9, 14), (0, 3 * 14)])
def test_evaluation_builds_every_weight_once_if_there_is_room(tiny, monkeypatch, free, builds):
    config = load_config(tiny)
    model = build_model(
        config.model, config.linear, seed=0, device="cpu", param_dtype=torch.float32, compute_dtype=torch.bfloat16
    )
    built = []
    decompress = dense.decompress
    monkeypatch.setattr(dense, "decompress", lambda *a, **k: built.append(1) or decompress(*a, **k))
    monkeypatch.setattr(kernel_choices, "free_bytes", lambda device: free)
    tokens = torch.arange(16).view(1, 16)
    with torch.no_grad(), kernel_choices.weights_kept(model):
        outputs = [model(tokens) for _ in range(3)]
    assert len(built) == builds
    with torch.no_grad():
        assert torch.equal(outputs[2], model(tokens))
    assert len(built) == builds + 14  # nothing is kept any more


def test_linears_that_build_no_weight_take_no_room(tiny, monkeypatch):
    """With half of the memory for the W of all but one linear, which goes without."""
    config = load_config(tiny)
    model = build_model(
        config.model, config.linear, seed=0, device="cpu", param_dtype=torch.float32, compute_dtype=torch.float32
    )
    first, *others = [m for m in model.modules() if isinstance(m, SparseLowRank)]
    for linear in others:
        linear.support.choice = Choice()
    first.support.choice = Choice(path="csr")
    room = 4 * sum(linear.in_features * linear.out_features for linear in others)
    for free, keep in ((2 * room, "step"), (2 * room - 2, "none")):
        monkeypatch.setattr(kernel_choices, "free_bytes", lambda device, free=free: free)
        with kernel_choices.weights_kept(model):
            assert {linear.support.choice.keep for linear in others} == {keep}
            assert first.support.choice == Choice(path="csr")
        assert {linear.support.choice for linear in others} == {Choice()}


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: "MemTotal: 900 kB\nMemAvailable: 600 kB\n")
    assert free_bytes(CPU) == 600 * 1024
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(CPU) == 150 * 1024


def test_a_wrong_backend_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setenv("SPARLOW_KERNELS", "cuda")
    with pytest.raises(UserError, match="auto, triton or torch"):
        train_here(tiny, "--train.max_steps=1")


def test_a_run_that_names_the_backend_as_it_was_once_called_goes_on(tiny):
    assert load_config(tiny, ["--kernels.backend=reference"]).kernels.backend == "torch"


def test_triton_without_a_gpu_is_one_sentence(tiny):
    with pytest.raises(UserError, match=r"kernels\.backend is triton, but .* cpu"):
        train_here(tiny, "--kernels.backend=triton", "--train.max_steps=1")


@pytest.fixture
def recorded_csr(tiny, tmp_path, monkeypatch):
    """A run that chose csr, on a machine without sparse matmuls."""
    monkeypatch.setattr(choice, "CSR_SMALLEST_SIDE", 1)
    train_here(tiny, *CSR_BY_RULE, "--train.max_steps=2")
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())
    assert {fields["path"] for fields in state["kernels"]["shapes"].values()} == {"csr"}

    def missing(*args, **options):
        raise RuntimeError("no MKL")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", missing)
    csr.available.cache_clear()
    yield tmp_path / "run"
    csr.available.cache_clear()


CSR_BY_RULE = ["--linear.rank=2", "--linear.density=0.02"]


def test_a_resume_without_sparse_matmuls_chooses_anew(tiny, recorded_csr):
    train_here(tiny, *CSR_BY_RULE, "--train.max_steps=3")
    state = json.loads((recorded_csr / "checkpoints/step-00000003/state.json").read_text())
    assert {fields["path"] for fields in state["kernels"]["shapes"].values()} == {"dense"}


def test_a_checkpoint_is_read_without_sparse_matmuls(recorded_csr):
    model = load_model(Checkpoint(recorded_csr / "checkpoints/step-00000002"), CPU)
    assert model(torch.arange(16).view(1, 16)).isfinite().all()


def test_memory_that_pytorch_has_reserved_is_free(monkeypatch):
    figures = {"mem_get_info": (5, 80), "memory_reserved": 60, "memory_allocated": 10}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    assert free_bytes(torch.device("cuda")) == 55


def test_damaged_measurements_are_one_sentence(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    measured.path_for(CPU).write_text("{")
    measured._alternatives.cache_clear()
    try:
        with pytest.raises(UserError, match=r"is not JSON; delete it"):
            train_here(tiny, "--train.max_steps=1")
    finally:
        measured._alternatives.cache_clear()
