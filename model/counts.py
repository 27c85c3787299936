"""Parameters and FLOPs of a model by arithmetic alone, without building it."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from kernels.sparse_low_rank_linear.choice import Choice
from model.config import ModelConfig
from model.linear import LINEARS, LinearConfig
from model.linear.dense import Dense
from model.linear.ranks import linear_at

ChoiceOf = Callable[[tuple[int, int, int]], Choice | None]
"""How a linear of (out, in, rank) computes, rank being 0 for a dense one; None where there is nothing to choose."""


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of the seven projections of one block, by their names within it."""
    dim, q_width, kv_width = config.dim, config.n_heads * config.head_width, config.kv_heads * config.head_width
    attention = {
        "q_proj": (dim, q_width),
        "k_proj": (dim, kv_width),
        "v_proj": (dim, kv_width),
        "o_proj": (q_width, dim),
    }
    feed = {"gate_proj": (dim, config.ffn_dim), "up_proj": (dim, config.ffn_dim), "down_proj": (config.ffn_dim, dim)}
    shapes = {f"attention.{name}": shape for name, shape in attention.items()}
    return shapes | {f"feed_forward.{name}": shape for name, shape in feed.items()}


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in_features, out_features) of every linear of the model, by its full name."""
    block = projection_shapes(config).items()
    return {f"layers.{layer}.{name}": shape for layer in range(config.n_layers) for name, shape in block}


def in_block(config: ModelConfig, linear: LinearConfig) -> LinearConfig:
    """`linear` with what the shapes of all seven projections of a block decide."""
    return LINEARS[linear.name].in_block(linear, projection_shapes(config).values())


@lru_cache(maxsize=16)
def _linears(config: ModelConfig, linear: LinearConfig) -> Counter[tuple[LinearConfig, tuple[int, int]]]:
    """The configuration and the shape (in, out) of linears, and how many there are of each. Kept, as a run asks for it
    in every step."""
    linear = in_block(config, linear)
    return Counter((linear_at(linear, name), shape) for name, shape in linear_shapes(config).items())


def count_parameters(config: ModelConfig, linear: LinearConfig) -> dict[str, int]:
    """`total` and `trainable` numbers of the model, and `dense_equivalent`, those of the same shape with dense linears.

    A tied head counts once. Integers (supports) are not parameters; a frozen dense matrix counts in `total` alone.
    """
    trained, kind = _parameters(config, linear), LINEARS[linear.name]
    frozen = sum(number * kind.count_frozen(own, *shape) for (own, shape), number in _linears(config, linear).items())
    dense = _parameters(config, Dense.Config())
    return {"total": trained + frozen, "trainable": trained, "dense_equivalent": dense}


def count_linear_parameters(config: ModelConfig, linear: LinearConfig) -> int:
    """The parameters of the projections alone that train, in which methods differ."""
    kind = LINEARS[linear.name]
    return sum(number * kind.count_parameters(own, *shape) for (own, shape), number in _linears(config, linear).items())


def _parameters(config: ModelConfig, linear: LinearConfig) -> int:
    linears = count_linear_parameters(config, linear)
    embeddings = config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
    return embeddings + linears + config.n_layers * 2 * config.dim + config.dim


def training_flops(
    config: ModelConfig,
    linear: LinearConfig,
    batch: int,
    seq_len: int,
    choice_of: ChoiceOf = lambda shape: None,
    micro_steps: int = 1,
) -> dict[str, int]:
    """FLOPs of `micro_steps` forward and backward passes over `batch` sequences of `seq_len` tokens each.

    A multiply-add is two. `executed` counts the matmuls this model performs, with linears that compute as
    `choice_of` says; `dense_equivalent` those of the same shape with dense linears.
    Convention (arXiv 2204.02311, appendix B): attention counts the full T x T matrix although a causal kernel may skip
    half; elementwise work, the embedding look-up and recomputation under activation checkpointing count nothing.
    """
    dense = _flops(config, Dense.Config(), batch, seq_len, lambda shape: None, micro_steps)
    return {
        "executed": _flops(config, linear, batch, seq_len, choice_of, micro_steps),
        "dense_equivalent": dense,
    }


def eight_bit_work(
    config: ModelConfig, linear: LinearConfig, tokens: int, weight_gradient_too: bool
) -> tuple[int, int]:
    """FLOPs in eight bits of one forward and backward pass over `tokens` tokens, and bytes moved to quantise for them.

    Of W (out, in) that are the products of the output and of the input's gradient. For them go x and the gradient of y
    from bf16 to codes (3 bytes for each number), W too, and W's codes are transposed (2 more). With
    `weight_gradient_too`, W's gradient: x and the gradient of y are transposed in bf16 and become codes (7).
    """
    kind, flops, moved = LINEARS[linear.name], 0, 0
    for (own, (n_in, n_out)), number in _linears(config, linear).items():
        flops += number * 4 * tokens * n_out * n_in
        moved += number * (3 * tokens * (n_in + n_out) + 5 * n_out * n_in)
        if weight_gradient_too and not kind.count_frozen(own, n_in, n_out):
            flops += number * 2 * tokens * n_out * n_in
            moved += number * 7 * tokens * (n_in + n_out)
    return flops, moved


def _flops(
    config: ModelConfig, linear: LinearConfig, batch: int, seq_len: int, choice_of: ChoiceOf, micro_steps: int
) -> int:
    kind, tokens = LINEARS[linear.name], batch * seq_len
    linears = 0
    for (own, (n_in, n_out)), number in _linears(config, linear).items():
        choice = choice_of((n_out, n_in, getattr(own, "rank", 0)))
        linears += number * kind.training_flops(own, n_in, n_out, tokens, choice, micro_steps)
    attention = 12 * tokens * seq_len * config.n_heads * config.head_width
    head = 6 * tokens * config.vocab_size * config.dim
    return linears + micro_steps * (config.n_layers * attention + head)
