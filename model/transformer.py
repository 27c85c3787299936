"""The LLaMA network (arXiv 2302.13971).

A decoder turns token ids into the loss of predicting each next one. Every block adds two things to a residual stream x:
x <- x + o(attention(norm(x))), then x <- x + down(silu(gate(norm(x))) * up(norm(x))). Nearly all parameters are in the
seven projections q, k, v, o, gate, up and down of each block, and these are where methods differ: a configuration says
what kind of linear they are (model/linear), and nothing else here knows.

What is subtle: the logits of all tokens would be the largest tensor of a step by far, so the model ends in a loss that
never holds them (kernels/linear_cross_entropy), and logits are made for generation alone. Weights are drawn from (seed,
name), so that a model is the same on every rank and whatever is built before it. Activations may be recomputed in the
backward pass, block by block; a linear that keeps its dense weight over a step is then asked for it twice. What is kept
for that may wait in host memory (offload.py).

Shapes: B batch, T tokens, D dim, H query heads, K key and value heads, E head width, F ffn_dim, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.attention import attention
from model.config import ModelConfig
from model.counts import in_block
from model.embedding import Embedding, OutputHead
from model.kv_cache import BlockCache, KVCache
from model.linear import LinearConfig, build_linear
from model.norm import RMSNorm
from model.offload import Offload
from model.rope import rotary_tables, rotate
from model.swiglu import swiglu


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, linear: LinearConfig, name: str):
        super().__init__()
        self.head_width = config.head_width
        q_width, kv_width = config.n_heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = build_linear(linear, config.dim, q_width, f"{name}.q_proj", config.init_std)
        self.k_proj = build_linear(linear, config.dim, kv_width, f"{name}.k_proj", config.init_std)
        self.v_proj = build_linear(linear, config.dim, kv_width, f"{name}.v_proj", config.init_std)
        self.o_proj = build_linear(linear, q_width, config.dim, f"{name}.o_proj", config.init_std)

    def forward(self, x: Tensor, rope: Tensor, cache: BlockCache | None = None) -> Tensor:
        q, k = rotate(self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), rope)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # [B, H, T, E], [B, K, T, E]
        v = self._heads(self.v_proj(x)).transpose(1, 2)  # [B, K, T, E]
        y = attention(q, k, v) if cache is None else cache.attend(q, k, v)  # [B, H, T, E]
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width))  # [B, T, heads, E]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, linear: LinearConfig, name: str):
        super().__init__()
        self.gate_proj = build_linear(linear, config.dim, config.ffn_dim, f"{name}.gate_proj", config.init_std)
        self.up_proj = build_linear(linear, config.dim, config.ffn_dim, f"{name}.up_proj", config.init_std)
        self.down_proj = build_linear(linear, config.ffn_dim, config.dim, f"{name}.down_proj", config.init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each added to the residual stream after a norm of its input."""

    def __init__(self, config: ModelConfig, linear: LinearConfig, name: str):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, linear, f"{name}.attention")
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config, linear, f"{name}.feed_forward")

    def forward(self, x: Tensor, rope: Tensor, cache: BlockCache | None = None) -> Tensor:
        return self.feed(self.attend(x, rope, cache))

    def attend(self, x: Tensor, rope: Tensor, cache: BlockCache | None = None) -> Tensor:
        return x + self.attention(self.attention_norm(x), rope, cache)

    def feed(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """A LLaMA whose seven projections per block are of the kind `linear`; embedding, norms and head are dense.

    The residual stream and all activations are in `compute_dtype`; parameters are cast to it where they are used, so
    they may be fp32 masters. `checkpoint_every` = k recomputes the activations of every k-th block in the backward
    pass; 0 keeps all. With `offload`, what such a block starts from waits in host memory. Parameters hold whatever was
    in memory: `model.build.build_model` initialises them.
    """

    def __init__(
        self,
        config: ModelConfig,
        linear: LinearConfig,
        compute_dtype: torch.dtype,
        checkpoint_every: int = 0,
        offload: bool = False,
    ):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.checkpoint_every = checkpoint_every
        self.offload = Offload() if offload else None
        self._tables: Tensor | None = None
        self.tok_embeddings = Embedding(config.vocab_size, config.dim, "tok_embeddings", config.init_std)
        linear = in_block(config, linear)
        self.layers = nn.ModuleList(TransformerBlock(config, linear, f"layers.{i}") for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = OutputHead(config.vocab_size, config.dim, "lm_head", config.init_std, config.tie_embeddings)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """fp32 logits [B, T, V] of tokens [B, T]; with targets [B, T] their summed negative log-likelihood (fp32, 0-d).

        Targets are the next tokens; -100 marks positions that do not count. With `cache`, tokens are those that follow
        the ones it holds, they are held from then on, and the logits are the last token's [B, 1, V]; no gradient.
        """
        config = self.config
        start = cache.position if cache else 0
        rope = self._rotary_tables(tokens.device)[:, start : start + tokens.shape[1]]
        x = self.tok_embeddings(tokens).to(self.compute_dtype)  # [B, T, D]
        every = self.checkpoint_every if self.training and torch.is_grad_enabled() else 0
        kept = self.offload.begin() if self.offload else None
        for i, layer in enumerate(self.layers):
            if not every or i % every:
                x = layer(x, rope, cache.blocks[i] if cache else None)
            elif kept is None:
                x = checkpoint(layer, x, rope, use_reentrant=False, preserve_rng_state=False)
            else:
                assert isinstance(layer, TransformerBlock)
                x = kept.recomputed(layer.attend, x, rope)
                x = kept.recomputed(layer.feed, x, stays=i + every >= len(self.layers))
        if cache:
            x = x[:, -1:]
        tied_weight = self.tok_embeddings.weight if config.tie_embeddings else None
        return self.lm_head(self.norm(x), targets, tied_weight)

    def _rotary_tables(self, device: torch.device) -> Tensor:
        """Made on first use and kept."""
        tables, dtype, config = self._tables, self.compute_dtype, self.config
        if tables is None or tables.device != device or tables.dtype != dtype:
            tables = rotary_tables(config, config.max_seq_len, device, dtype)
            self._tables = tables
        return tables
