"""PEFT on an exported folder: each of its ways of fine-tuning lowers the loss, and merges into a plain model again."""

import json
import random
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
METHODS = {"LoRA", "PiSSA", "OLoRA", "DoRA", "AdaLoRA", "LoHa", "VeRA", "LoRA-FA", "RandLoRA"}


def test_every_method_learns(exported, outside, tmp_path):
    draws = random.Random(2)
    texts = [" ".join(draws.choices(["abc", "dede", "fff"], k=40)) for _ in range(4)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = Path(__file__).with_name("train_peft.py")
    said = outside(script, exported, tmp_path / "texts.json", needs=("peft", "transformers"))
    answers = [json.loads(line) for line in said.splitlines() if line.startswith('{"method"')]
    found = {answer["method"] for answer in answers}
    assert found >= METHODS
    assert found & {"Bone", "Miss"}
    for answer in answers:
        assert answer["losses"][-1] < answer["losses"][0] - 0.05, answer
        assert answer["moved"] < 1e-3, answer
