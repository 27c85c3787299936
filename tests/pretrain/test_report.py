"""report: the picture and the table of runs."""

import json

import pytest
from support import train_here

from model.errors import UserError
from pretrain.report import _smooth, write_report


def test_two_runs_side_by_side(tiny, tmp_path):
    for name, linear in (("sltrain", "sparse_low_rank"), ("dense", "dense")):
        train_here(
            tiny, f"--run.dir={tmp_path}/{name}", f"--linear.name={linear}", "--train.max_steps=4", "--eval.every=2"
        )
    files = write_report([tmp_path / "sltrain", tmp_path / "dense"], tmp_path / "out")
    assert [path.name for path in files] == ["loss.png", "table.json", "index.html"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    table = json.loads(files[1].read_text())
    assert [row["run"] for row in table] == ["sltrain", "dense"]
    assert table[0]["parameters"] < table[1]["parameters"]
    assert "<td>dense</td>" in files[2].read_text()


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        write_report([tmp_path], tmp_path / "out")


def test_smoothing_keeps_a_constant():
    assert _smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert _smooth([1.0, 3.0])[1] == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81))
