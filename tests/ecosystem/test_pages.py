"""What pretrain/using/README.md tells people to type, typed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.slow
PAGE = (ROOT / "pretrain/using/README.md").read_text()


def block(section: str, language: str) -> str:
    """The first block of code in a language in a section of the page."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", text, re.S)[1]


@pytest.fixture
def folder(exported, documents, tmp_path):
    """A folder with what the page takes to be there."""
    shutil.copytree(exported, tmp_path / "exports" / "mine")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_text.yaml").write_text(block("lm-evaluation-harness", "yaml"))
    (tmp_path / "my_text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return tmp_path


def test_transformers(folder, outside):
    said = outside("-c", block("transformers", "python"), needs=("transformers",))
    assert said.startswith("The ")
    assert len(said) > 10


def test_peft(folder, outside):
    said = outside("-c", block("PEFT", "python"), needs=("peft", "transformers"))
    assert len([float(line) for line in said.split()]) == 7
    assert (folder / "adapters" / "mine" / "adapter_model.safetensors").is_file()


def test_lm_eval(folder, trained, outside):
    """As the page has it, with the command beside this Python first on the path."""
    outside("-c", "import lm_eval", needs=("lm_eval", "accelerate"))
    kept = {"HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = block("lm-evaluation-harness", "bash")
    done = subprocess.run(["bash", "-ec", command], cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = folder.glob("results/**/samples_my_text_*.jsonl")
    theirs = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    theirs = [float(response[0] if isinstance(response, list) else response) for response in theirs]
    command = [sys.executable, "-m", "pretrain", "eval", str(trained), "--text", "my_text.jsonl", "--json"]
    environment = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    assert theirs == pytest.approx([json.loads(line)["loglikelihood"] for line in said.splitlines()], rel=1e-5)


def test_vllm_finds_its_keys(folder, outside):
    """Of vllm/model_executor/models/llama.py, which reads transformers' configuration."""
    script = """
import json, sys, transformers
config = transformers.AutoConfig.from_pretrained("exports/mine")
generation = transformers.GenerationConfig.from_pretrained("exports/mine")
keys = ("architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "mlp_bias",
        "attention_bias", "tie_word_embeddings", "rope_parameters", "bos_token_id", "eos_token_id")
found = {key: getattr(config, key) for key in keys} | {"dtype": str(config.dtype)}
found["ends"] = [generation.bos_token_id, generation.eos_token_id]
tokenizer = transformers.AutoTokenizer.from_pretrained("exports/mine", use_fast=True)
found["fast"], found["longest"] = tokenizer.is_fast, tokenizer.model_max_length
print(json.dumps(found))
"""
    found = json.loads(outside("-c", script, needs=("transformers",)))
    assert found["architectures"] == ["LlamaForCausalLM"]
    assert found["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    shape = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    assert [found[key] for key in shape] == [2, 2, 1, 16, 320]
    assert (found["dtype"], found["longest"], found["fast"]) == ("torch.float32", 64, True)
    assert (found["ends"], found["bos_token_id"], found["eos_token_id"]) == ([1, 2], 1, 2)
    assert (found["hidden_act"], found["tie_word_embeddings"], found["mlp_bias"]) == ("silu", False, False)
