"""lm-evaluation-harness on local tasks: the log-likelihood of every document is the one that `sparlow eval` prints."""

import json
import math
from pathlib import Path

import pytest

from pretrain.cli import main

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("ask_lm_eval.py")
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(outside, folder, task, text, options):
    tasks = Path(folder).parent / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / f"{task}.yaml").write_text(text)
    said = outside(SCRIPT, folder, task, tasks, json.dumps(options), needs=("lm_eval", "accelerate"))
    return json.loads(said.rpartition("ANSWER")[2])


@pytest.fixture
def likelihoods(trained, tmp_path, capsys):
    """What `sparlow eval` prints of each text."""

    def evaluate(texts):
        file = write_lines(tmp_path / "evaluated.jsonl", [{"text": text} for text in texts])
        capsys.readouterr()
        assert main(["eval", str(trained), "--text", str(file), "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return evaluate


def test_rolling(exported, documents, likelihoods, outside, tmp_path):
    """Equal for documents of any length, when lm-eval leaves bos to its own prefix."""
    file = write_lines(tmp_path / "documents.jsonl", [{"text": text} for text in documents])
    answer = ask(outside, exported, "local_rolling", ROLLING.format(file=file), {"add_bos_token": False})
    theirs = [response[0][0] for response in answer["resps"]]
    ours = likelihoods(documents)
    assert max(each["tokens"] for each in ours) > 2 * 64  # more than two windows
    assert theirs == pytest.approx([each["loglikelihood"] for each in ours], rel=1e-5)
    bits = -sum(theirs) / math.log(2) / sum(each["bytes"] for each in ours)
    assert answer["results"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)


def test_choices(exported, likelihoods, outside, tmp_path):
    """Each choice's is what the question loses by having it behind; the tokenizer's own bos comes first, as always."""
    rows = [
        {"question": "abc de", "choices": [" fgh", " ijkl mn", "  op"], "answer": 0},
        {"question": "op op", "choices": [" abc", " op"], "answer": 1},
    ]
    file = write_lines(tmp_path / "choices.jsonl", rows)
    answer = ask(outside, exported, "local_choice", CHOICE.format(file=file), {})
    for row, responses in zip(rows, answer["resps"], strict=True):
        question, *whole = (
            each["loglikelihood"]
            for each in likelihoods([row["question"], *(row["question"] + choice for choice in row["choices"])])
        )
        theirs = [response[0][0] for response in responses]
        assert theirs == pytest.approx([each - question for each in whole], rel=1e-4)
