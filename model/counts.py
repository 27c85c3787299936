"""Parameters and FLOPs of a model by arithmetic alone, without building it."""

from collections.abc import Callable, Iterator

from kernels.sparse_low_rank_linear.choice import Choice
from model.config import ModelConfig
from model.linear import LINEARS, LinearConfig
from model.linear.dense import Dense

ChoiceOf = Callable[[tuple[int, int]], Choice | None]
"""How a linear of shape (out, in) computes; None where there is nothing to choose."""


def projection_shapes(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(in_features, out_features) of the seven projections of one block."""
    q_width, kv_width = config.n_heads * config.head_width, config.kv_heads * config.head_width
    yield from ((config.dim, q_width), (config.dim, kv_width), (config.dim, kv_width), (q_width, config.dim))
    yield from ((config.dim, config.ffn_dim), (config.dim, config.ffn_dim), (config.ffn_dim, config.dim))


def count_parameters(config: ModelConfig, linear: LinearConfig) -> dict[str, int]:
    """`total` and `trainable` numbers of the model, and `dense_equivalent`, those of the same shape with dense linears.

    A tied head counts once. Integers (supports) are not parameters.
    """
    total = _parameters(config, linear)
    return {"total": total, "trainable": total, "dense_equivalent": _parameters(config, Dense.Config())}


def _parameters(config: ModelConfig, linear: LinearConfig) -> int:
    kind = LINEARS[linear.name]
    projections = sum(kind.count_parameters(linear, *shape) for shape in projection_shapes(config))
    embeddings = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    return embeddings + config.n_layers * (projections + 2 * config.dim) + config.dim


def training_flops(
    config: ModelConfig,
    linear: LinearConfig,
    batch: int,
    seq_len: int,
    choice_of: ChoiceOf = lambda shape: None,
    micro_steps: int = 1,
) -> dict[str, int]:
    """FLOPs of `micro_steps` forward and backward passes over `batch` sequences of `seq_len` tokens each.

    A multiply-add is two. `executed` counts the matmuls this model performs, with linears of a shape (out, in) that
    compute as `choice_of` says; `dense_equivalent` those of the same shape with dense linears.
    Convention (arXiv 2204.02311, appendix B): attention counts the full T x T matrix although a causal kernel may skip
    half; elementwise work, the embedding look-up and recomputation under activation checkpointing count nothing.
    """
    dense = _flops(config, Dense.Config(), batch, seq_len, lambda shape: None, micro_steps)
    return {
        "executed": _flops(config, linear, batch, seq_len, choice_of, micro_steps),
        "dense_equivalent": dense,
    }


def _flops(
    config: ModelConfig, linear: LinearConfig, batch: int, seq_len: int, choice_of: ChoiceOf, micro_steps: int
) -> int:
    kind, tokens = LINEARS[linear.name], batch * seq_len
    projections = sum(
        kind.training_flops(linear, n_in, n_out, tokens, choice_of((n_out, n_in)), micro_steps)
        for n_in, n_out in projection_shapes(config)
    )
    attention = 12 * tokens * seq_len * config.n_heads * config.head_width
    head = 6 * tokens * config.vocab_size * config.dim
    return config.n_layers * (projections + micro_steps * attention) + micro_steps * head
