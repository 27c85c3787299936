"""The stages of a run: hand-computed boundaries and learning rates, and what holds for every table [growth]."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import train_here

from model.config import ModelConfig
from model.errors import UserError
from model.linear import LINEARS
from pretrain.config.growth_table import GrowthConfig
from pretrain.config.schedule import WSD, Constant, Cosine, Linear, ScheduleConfig
from pretrain.config.schema import Config
from pretrain.config.stages import growth_time
from pretrain.config.tables import TrainConfig

END = {"cosine": 0.1, "linear": 0.2, "constant": 1.0, "wsd": 0.05}
SCHEDULES = {
    "cosine": Cosine(total_steps=100, min_lr_ratio=0.1),
    "linear": Linear(total_steps=100, min_lr_ratio=0.2),
    "constant": Constant(total_steps=100),
    "wsd": WSD(total_steps=100, min_lr_ratio=0.05, decay_fraction=0.5),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
PEAK = Config().optimizer.lr


def growing(
    *,
    enabled: bool = True,
    n_layers: int = 12,
    linear: dict[str, Any] | None = None,
    schedule: ScheduleConfig = SCHEDULES["cosine"],
    growth_schedule: str = "reset",
    batch: int = 8,
    seq_len: int = 32,
    **growth: Any,
) -> Config:
    """A run of 100 steps of 256 tokens each that grows to 12 layers."""
    shape = {"dim": 64, "n_heads": 4, "ffn_dim": 128, "vocab_size": 320, "max_seq_len": seq_len}
    return Config(
        model=ModelConfig(n_layers=n_layers, **shape),
        linear=LINEARS[linear.pop("name") if linear else "dense"].Config(**(linear or {})),
        schedule=schedule,
        train=TrainConfig(micro_batch_size=batch, global_batch_size=batch, seq_len=seq_len),
        growth=GrowthConfig(enabled=enabled, schedule=growth_schedule, **growth),
    )


def boundaries(config: Config) -> list[tuple[int, int, int]]:
    return [(stage.config.model.n_layers, stage.start, stage.end) for stage in config.stages]


def rate(config: Config, step: int) -> float:
    """The learning rate of a step, from the stage that makes it."""
    (stage,) = (stage for stage in config.stages if stage.start < step <= stage.end)
    return stage.lr(step)


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        # 256 tokens a step; tokens are rounded up to whole steps, parts of the run to the nearest step
        ({"at": 1}, [(3, 0, 1), (12, 1, 100)]),
        ({"at": 256}, [(3, 0, 1), (12, 1, 100)]),
        ({"at": 257}, [(3, 0, 2), (12, 2, 100)]),
        ({"at": 2560}, [(3, 0, 10), (12, 10, 100)]),
        ({"at": 25344}, [(3, 0, 99), (12, 99, 100)]),
        ({"at": 0.25}, [(3, 0, 25), (12, 25, 100)]),
        ({"at": 0.254}, [(3, 0, 25), (12, 25, 100)]),
        ({"at": 0.256}, [(3, 0, 26), (12, 26, 100)]),
        ({"at": 0.25, "factor": 12}, [(1, 0, 25), (12, 25, 100)]),
        ({"at": (0.25,), "factor": (2,)}, [(6, 0, 25), (12, 25, 100)]),
        # factors in the order of the growths
        ({"at": (0.1, 0.5), "factor": (2, 3)}, [(2, 0, 10), (4, 10, 50), (12, 50, 100)]),
        ({"at": (0.1, 0.5), "factor": (3, 2)}, [(2, 0, 10), (6, 10, 50), (12, 50, 100)]),
        ({"at": (256, 0.5, 12801), "factor": (2, 2, 3)}, [(1, 0, 1), (2, 1, 50), (4, 50, 51), (12, 51, 100)]),
        ({"at": 0.5, "layers": (8,), "operator": "solar"}, [(8, 0, 50), (12, 50, 100)]),
        ({"at": (0.2, 0.5), "layers": (4, 6), "operator": "gradual"}, [(4, 0, 20), (6, 20, 50), (12, 50, 100)]),
        # the formula asks for far more than 25,600 tokens here
        ({"at": "formula"}, [(3, 0, 10), (12, 10, 100)]),
        ({"at": "formula", "max_fraction": 0.333}, [(3, 0, 33), (12, 33, 100)]),
    ],
)
def test_boundaries(growth, expected):
    assert boundaries(growing(**growth)) == expected


def test_the_formula_of_a_long_run_is_not_clamped():
    """N = 41,024 + 12 x 41,088 = 534,080 for the 12 layers, D = 4096 x 4096 x 3,000,000 tokens: C = 1.61e20."""
    parameters = 2 * 320 * 64 + 64 + 12 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    flops = 6 * parameters * 2**24 * 3_000_000
    tokens = 10 ** (0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74)
    config = growing(batch=4096, seq_len=4096, schedule=Cosine(total_steps=3_000_000), at="formula")
    assert not growth_time(config).clamped
    assert growth_time(config).tokens == int(tokens)
    assert boundaries(config) == [(3, 0, round(tokens / 2**24)), (12, round(tokens / 2**24), 3_000_000)]


def test_without_growth_there_is_one_stage_and_it_is_the_run():
    for config in (Config(), growing(enabled=False)):
        (stage,) = config.stages
        assert (stage.start, stage.end, stage.plan) == (0, config.schedule.total_steps, None)
        assert stage.config is config or stage.config == config
        for step in (1, 7, config.schedule.total_steps):
            assert stage.lr(step) == config.optimizer.lr * config.schedule.factor(step)


def test_a_stage_is_a_run_without_growth():
    config = growing(at=(0.1, 0.5), factor=(2, 3), operator="interleave")
    small, middle, large = config.stages
    assert [stage.index for stage in config.stages] == [0, 1, 2]
    assert (small.plan, middle.plan.source, large.plan.small) == (None, (0, 0, 1, 1), 4)
    for stage in config.stages:
        assert not stage.config.growth.enabled
        assert stage.config.train == config.train
    assert large.config.model == config.model
    seeds = [stage.config.run.seed for stage in config.stages]
    assert seeds[0] == config.run.seed
    assert len(set(seeds)) == 3


def test_rank_and_density_grow_last():
    linear = {"name": "sparse_low_rank", "rank": 8, "density": 0.3}
    config = growing(linear=linear, at=(0.1, 0.5), factor=(2, 2), rank=4, density=0.1)
    assert [(stage.config.linear.rank, stage.config.linear.density) for stage in config.stages] == [
        (4, 0.1),
        (4, 0.1),
        (8, 0.3),
    ]


@pytest.mark.parametrize(
    ("growth", "shapes"),
    [  # dim, heads, key and value heads, their width, hidden units: from 64 channels in 4 heads and 128 units
        ({"dim": 32, "n_heads": 2, "ffn_dim": 64}, (32, 2, 2, 16, 64)),
        ({"dim": 32}, (32, 4, 4, 16, 128)),
        ({"n_heads": 1}, (64, 1, 1, 16, 128)),
        ({"n_kv_heads": 2}, (64, 4, 2, 16, 128)),
        ({"ffn_dim": 128}, (64, 4, 4, 16, 128)),
        ({"dim": 16, "n_heads": 2, "n_kv_heads": 1}, (16, 2, 1, 16, 128)),
    ],
)
def test_widths_grow_last_and_heads_stay_as_wide(growth, shapes):
    config = growing(at=(0.1, 0.5), factor=(2, 2), **growth)
    models = [stage.config.model for stage in config.stages]
    assert models[2] == config.model
    for n_layers, model in zip((3, 6), models, strict=False):
        found = (model.dim, model.n_heads, model.kv_heads, model.head_width, model.ffn_dim)
        assert (model.n_layers, found) == (n_layers, shapes)
        assert ModelConfig.model_validate(model.model_dump()) == model
    assert config.stages[0].config.model.max_seq_len == config.model.max_seq_len


@every_schedule
def test_before_growth_the_schedule_is_that_of_the_run(name):
    for schedule in ("reset", "continue"):
        config = growing(schedule=SCHEDULES[name], at=0.4, growth_schedule=schedule)
        for step in range(1, 41):
            assert rate(config, step) == PEAK * SCHEDULES[name].factor(step)


@every_schedule
def test_continue_is_as_if_nothing_had_happened(name):
    config = growing(schedule=SCHEDULES[name], at=(0.4, 0.6), factor=(2, 2), growth_schedule="continue")
    assert [rate(config, step) for step in range(1, 101)] == [
        PEAK * SCHEDULES[name].factor(step) for step in range(1, 101)
    ]


# Growth after step 40: 60 steps are left, of them 6 of warm-up and 54 of the curve, half of which is step 73.
AFTER = {
    "cosine": {73: 0.55, 53: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 54))},
    "linear": {73: 0.6, 64: 1 - 0.8 / 3},
    "constant": {47: 1.0, 99: 1.0},
    "wsd": {47: 1.0, 73: 1.0, 82: 1 - 0.95 / 3},
}


@every_schedule
def test_reset_warms_up_again_and_runs_the_whole_curve(name):
    config = growing(schedule=SCHEDULES[name], at=0.4, growth_schedule="reset")
    expected = {41: 1 / 6, 43: 0.5, 46: 1.0, 100: END[name], **AFTER[name]}
    assert {step: rate(config, step) / PEAK for step in expected} == pytest.approx(expected, rel=1e-12)


def test_every_growth_begins_the_curve_anew():
    """After step 80: 20 steps are left, 5 of them warm-up with warmup_fraction = 0.25, 15 the line from 1 to 0.2."""
    config = growing(schedule=SCHEDULES["linear"], at=(0.4, 0.8), factor=(2, 2), warmup_fraction=0.25)
    # In the second stage 60 steps are ahead, 15 of them warm-up, of which 40 pass.
    expected = {10: 1.0, 55: 1.0, 80: 1 - 0.8 * 25 / 45, 81: 0.2, 85: 1.0, 88: 0.84, 100: 0.2}
    assert {step: rate(config, step) / PEAK for step in expected} == pytest.approx(expected, rel=1e-12)


def test_no_warm_up_after_growth():
    config = growing(schedule=SCHEDULES["linear"], at=0.4, warmup_fraction=0.0)
    assert rate(config, 41) == pytest.approx(PEAK * (1 - 0.8 / 60), rel=1e-12)


@pytest.mark.parametrize("growth_schedule", ["reset", "continue"])
def test_growth_lr_is_the_peak_before_the_last_growth(growth_schedule):
    config = growing(at=(0.2, 0.6), factor=(2, 2), lr=0.5, growth_schedule=growth_schedule)
    plain = growing(at=(0.2, 0.6), factor=(2, 2), growth_schedule=growth_schedule)
    for step in (1, 5, 20, 21, 60, 61, 99, 100):
        wanted = 0.5 / PEAK if step <= 60 else 1.0
        assert rate(config, step) / rate(plain, step) == pytest.approx(wanted, rel=1e-12)


def tables(total: int) -> st.SearchStrategy[dict]:
    """Growth tables for a run of `total` steps of 256 tokens, with times that rise."""

    def at(steps: set[int], as_tokens: list[bool]) -> tuple[int | float, ...]:
        return tuple(
            256 * step if tokens else step / total for step, tokens in zip(sorted(steps), as_tokens, strict=False)
        )

    times = st.builds(
        at,
        st.sets(st.integers(1, total - 1), min_size=1, max_size=min(4, total - 1)),
        st.lists(st.booleans(), min_size=4, max_size=4),
    )

    def sized(at: tuple[int | float, ...]) -> st.SearchStrategy[dict]:
        return st.fixed_dictionaries(
            {
                "at": st.just(at),
                "factor": st.tuples(*[st.integers(2, 5)] * len(at)),
                "growth_schedule": st.sampled_from(["reset", "continue"]),
                "lr": st.sampled_from([0.0, PEAK / 2, PEAK * 3]),
            }
        )

    return times.flatmap(sized)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_the_stages_partition_the_run(data):
    total = data.draw(st.integers(2, 300))
    name, warm_up = data.draw(st.sampled_from(sorted(SCHEDULES))), data.draw(st.floats(0, 0.99))
    table = data.draw(tables(total))
    factors = table["factor"]
    if table["growth_schedule"] == "reset":
        table["warmup_fraction"] = data.draw(st.floats(0, 0.99))
    schedule = SCHEDULES[name].model_copy(update={"total_steps": total, "warmup_fraction": warm_up})
    config = growing(schedule=schedule, n_layers=math.prod(factors), **table)
    stages = config.stages

    assert [step for stage in stages for step in range(stage.start + 1, stage.end + 1)] == list(range(1, total + 1))
    assert [stage.config.model.n_layers for stage in stages] == [
        math.prod(factors[:index]) for index in range(len(factors) + 1)
    ]
    assert all(len(stage.plan.source) == stage.config.model.n_layers for stage in stages[1:])
    for time, stage in zip(table["at"], stages[:-1], strict=True):
        assert stage.end == (time // 256 if isinstance(time, int) else round(time * total))
    for stage in stages:
        peak = PEAK if stage is stages[-1] else table["lr"] or PEAK
        rates = [stage.lr(step) for step in range(stage.start + 1, stage.end + 1)]
        assert all(math.isfinite(rate) and 0 <= rate <= peak for rate in rates)
    last = stages[-1].schedule
    if last.warmup_steps < last.total_steps:  # a warm-up may round to all of a few steps
        assert rate(config, total) == pytest.approx(PEAK * END[name], rel=1e-9)


def test_a_changed_table_is_refused_with_a_diff(tiny):
    """tiny.toml has 60 steps and 2 layers; the run stops before it would grow."""
    options = ["--growth.enabled=true", "--growth.factor=[2]", "--growth.at=[0.5]", "--train.max_steps=2"]
    train_here(tiny, *options)
    for changed, diff in (
        ("--growth.at=[0.25]", r"growth\.at was \(0\.5,\), is \(0\.25,\)"),
        ("--growth.factor=2", r"growth\.factor was \(2,\), is 2"),
        ("--growth.enabled=false", r"growth\.enabled was True, is False"),
        ("--growth.lr=0.5", r"growth\.lr was 0\.0, is 0\.5"),
    ):
        with pytest.raises(UserError, match=rf"{diff}; restore these, or choose another run\.dir"):
            train_here(tiny, *options, changed)
    assert train_here(tiny, *options, "--train.max_steps=3") == 0


def test_a_table_is_hashable_and_immutable():
    growth = GrowthConfig(enabled=True, factor=(2, 2), at=(0.5, 1))
    assert hash(growth) == hash(growth.model_copy())
    with pytest.raises(ValueError, match="frozen"):
        growth.factor = 4
