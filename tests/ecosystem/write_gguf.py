"""Run in a process of its own: the folder argv[1] as the GGUF file argv[2], by the rules of llama.cpp's converter.

From conversion/llama.py and conversion/base.py of https://github.com/ggml-org/llama.cpp, and from nothing but the
folder: what they ask of config.json, tokenizer_config.json, tokenizer.model and the weights.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
from safetensors.torch import load_file

folder, out = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())
facts = json.loads((folder / "tokenizer_config.json").read_text())
assert config["architectures"] == ["LlamaForCausalLM"]
layers, heads, kv_heads = (config[f"num_{of}"] for of in ("hidden_layers", "attention_heads", "key_value_heads"))

writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
writer.add_block_count(layers)
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_rope_freq_base(config["rope_theta"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_key_length(config["head_dim"])
writer.add_value_length(config["head_dim"])
writer.add_vocab_size(config["vocab_size"])
writer.add_rope_dimension_count(config["head_dim"])
writer.add_add_space_prefix(facts["add_prefix_space"])

processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
tokens = [f"[PAD{i}]".encode() for i in range(config["vocab_size"])]
scores, types = [-10000.0] * len(tokens), [gguf.TokenType.UNUSED] * len(tokens)
for i in range(processor.vocab_size()):
    tokens[i], scores[i], types[i] = processor.id_to_piece(i).encode(), processor.get_score(i), gguf.TokenType.NORMAL
    for asked, kind in (("unknown", "UNKNOWN"), ("control", "CONTROL"), ("unused", "UNUSED"), ("byte", "BYTE")):
        if getattr(processor, f"is_{asked}")(i):
            types[i] = gguf.TokenType[kind]
writer.add_tokenizer_model("llama")
writer.add_tokenizer_pre("default")
writer.add_token_list(tokens)
writer.add_token_scores(scores)
writer.add_token_types(types)
gguf.SpecialVocab(folder, n_vocab=len(tokens)).add_to_gguf(writer)

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
for path in sorted(folder.glob("*.safetensors")):
    for name, weight in load_file(path).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # rotary pairs lie side by side there
            groups = heads if name.endswith("q_proj.weight") else kv_heads
            weight = weight.reshape(groups, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.float().numpy().astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
