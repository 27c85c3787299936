"""The shape of a LLaMA."""

from pydantic import Field, model_validator

from model.schema import Frozen


class ModelConfig(Frozen):
    """A LLaMA: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases (arXiv 2302.13971)."""

    dim: int = Field(512, ge=1, le=2**24)
    """Width of the residual stream."""
    n_layers: int = Field(8, ge=1, le=2**12)
    """Number of transformer blocks."""
    n_heads: int = Field(8, ge=1, le=2**24)
    """Query heads per block."""
    n_kv_heads: int = Field(0, ge=0, le=2**24)
    """Key and value heads per block; 0 means as many as n_heads."""
    head_dim: int = Field(0, ge=0, le=2**24)
    """Width of one head; 0 means dim / n_heads."""
    ffn_dim: int = Field(1376, ge=1, le=2**24)
    """Inner width of the SwiGLU block, exactly as used (no hidden rounding)."""
    vocab_size: int = Field(32000, ge=1, le=2**24)
    """Rows of the embedding and the output head; at least the tokenizer's vocabulary."""
    max_seq_len: int = Field(1024, ge=1, le=2**24)
    """Longest sequence, in tokens, that the model may be given."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary position encoding."""
    norm_eps: float = Field(1e-6, gt=0)
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = False
    """Share one matrix between the token embedding and the output head."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the normal initialisation of dense matrices and the embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.head_dim == 0 and self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not divisible by n_heads {self.n_heads}; set head_dim or change one")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"the head width {self.head_width} is odd; rotary positions need an even one")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.n_heads
