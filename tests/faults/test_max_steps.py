"""train.max_steps below the step reached: nothing to do is said, exit 0, and the run stays as good as it was."""

import pytest
from growth_runs import GROWS, GROWTH, LAST, grown_run, names
from support import logged, tensor_hashes, train_here

from pretrain.cli import main

pytestmark = pytest.mark.fault("F35")


def test_it_does_nothing_and_the_run_goes_on(tiny, tmp_path, capsys):
    run, schedule = tmp_path / "run", "--schedule.total_steps=8"
    train_here(tiny, schedule, "--train.max_steps=6")
    summary, metrics = (run / "summary.json").read_bytes(), (run / "metrics.jsonl").read_bytes()
    for steps in (5, 1):
        assert train_here(tiny, schedule, f"--train.max_steps={steps}") == 0
        assert (
            f"nothing to do: {run} is at step 6 already, past train.max_steps {steps}; raise" in capsys.readouterr().out
        )
    assert ((run / "summary.json").read_bytes(), (run / "metrics.jsonl").read_bytes()) == (summary, metrics)
    assert names(run) == ["step-00000006"]
    train_here(tiny, schedule)
    straight = tmp_path / "straight"
    train_here(tiny, schedule, f"--run.dir={straight}")
    assert (tensor_hashes(run, 8), logged(run)) == (tensor_hashes(straight, 8), logged(straight))


@pytest.mark.parametrize("reached", [GROWS - 1, pytest.param(GROWS + 2, marks=pytest.mark.slow)])
def test_a_run_with_growth_does_not_grow_early(tiny, tmp_path, capsys, reached):
    """Neither before its growth, where the larger model would come too soon, nor after it, where there is none."""
    run = grown_run(tiny, tmp_path / "run", train__max_steps=reached)
    before = names(run)
    assert train_here(tiny, *GROWTH, f"--run.dir={run}", "--checkpoint.keep=99", "--train.max_steps=2") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert names(run) == before
    grown_run(tiny, run)
    straight = grown_run(tiny, tmp_path / "straight")
    assert tensor_hashes(run, LAST) == tensor_hashes(straight, LAST)


def test_the_command_says_it_and_ends_with_0(tiny, capsys):
    command = ["train", str(tiny), "--schedule.total_steps=8"]
    assert main([*command, "--train.max_steps=2"]) == 0
    assert main([*command, "--train.max_steps=1"]) == 0
    assert "nothing to do" in capsys.readouterr().out
