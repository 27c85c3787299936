"""Equal FLOPs: the nearest number of steps, also of a run that grows."""

import pytest
from suites import write_suite

from pretrain.compare.matrix import equal_steps, flops_of, make_methods, with_steps
from pretrain.compare.read import read_suite

GROWN = (
    "[growths.stack]\nfactor = 2\nat = 0.3\n"
    '[[methods]]\nlinear = ["dense"]\noptimizer = ["adamw"]\ngrowth = ["stack"]\nrates = [1e-3, 3e-3]\n'
)


@pytest.mark.parametrize("name", ["dense + adamw", "thin + adamw", "dense + adamw + stack"])
@pytest.mark.parametrize("target", [1e3, 1.01e6, 7.77e9])
def test_equal_flops_are_within_a_step(tmp_path, name, target):
    method = make_methods(read_suite(write_suite(tmp_path, extra=GROWN)))[name]
    per_update = [3.1e3, 7.3e3][-len(method.config.stages) :]
    steps = equal_steps(method.config, per_update, target)

    def off(count):
        return abs(flops_of(with_steps(method.config, count), per_update) - target)

    assert off(steps) <= max(per_update) or steps == 1
    assert off(steps) <= off(steps + 1)
    assert steps == 1 or off(steps) <= off(steps - 1)


def test_a_baseline_has_its_own_steps(tmp_path):
    for method in make_methods(read_suite(write_suite(tmp_path, extra=GROWN))).values():
        target = flops_of(method.config, method.planned_flops)
        assert equal_steps(method.config, method.planned_flops, target) == method.config.schedule.total_steps == 100


def test_flops_of_growth_are_those_of_its_stages(tmp_path):
    config = make_methods(read_suite(write_suite(tmp_path, extra=GROWN)))["dense + adamw + stack"].config
    assert flops_of(config, [10.0, 1000.0]) == 30 * 10 + 70 * 1000
