"""The tensors of a Hugging Face LLaMA and what they are called here."""

from collections.abc import Iterator
from typing import NamedTuple

from model.config import ModelConfig


class DenseTensor(NamedTuple):
    """One weight of the dense model."""

    ours: str
    """Name in a Transformer with dense linears, e.g. "layers.0.attention.q_proj.weight"."""
    theirs: str
    """Name in a Hugging Face LlamaForCausalLM."""
    shape: tuple[int, ...]


def dense_tensors(config: ModelConfig) -> Iterator[DenseTensor]:
    """Every weight of the dense model, in the order of a forward pass; a tied head is the embedding and not listed."""
    dim, ffn = config.dim, config.ffn_dim
    q_width, kv_width = config.n_heads * config.head_width, config.kv_heads * config.head_width
    block = (
        ("attention_norm", "input_layernorm", (dim,)),
        ("attention.q_proj", "self_attn.q_proj", (q_width, dim)),
        ("attention.k_proj", "self_attn.k_proj", (kv_width, dim)),
        ("attention.v_proj", "self_attn.v_proj", (kv_width, dim)),
        ("attention.o_proj", "self_attn.o_proj", (dim, q_width)),
        ("ffn_norm", "post_attention_layernorm", (dim,)),
        ("feed_forward.gate_proj", "mlp.gate_proj", (ffn, dim)),
        ("feed_forward.up_proj", "mlp.up_proj", (ffn, dim)),
        ("feed_forward.down_proj", "mlp.down_proj", (dim, ffn)),
    )
    yield DenseTensor("tok_embeddings.weight", "model.embed_tokens.weight", (config.vocab_size, dim))
    for i in range(config.n_layers):
        for ours, theirs, shape in block:
            yield DenseTensor(f"layers.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight", shape)
    yield DenseTensor("norm.weight", "model.norm.weight", (dim,))
    if not config.tie_embeddings:
        yield DenseTensor("lm_head.weight", "lm_head.weight", (config.vocab_size, dim))
