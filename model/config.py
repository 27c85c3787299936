"""The shape of a LLaMA."""

from typing import Literal

from pydantic import Field, model_validator

from model.schema import Frozen

ROPE_SCALING_KEYS = ("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_len")
"""Keys that rope_scaling brings into play."""


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
    rope_scaling: Literal["none", "llama3"] = "none"
    """llama3: slow rotary frequencies are divided by rope_factor, as in Llama 3.1 and later, for longer sequences."""
    rope_factor: float = Field(8.0, ge=1)
    """With rope_scaling: what the slowest rotary frequencies are divided by."""
    rope_low_freq_factor: float = Field(1.0, gt=0)
    """With rope_scaling: frequencies that turn less often than this over rope_original_len are divided in full."""
    rope_high_freq_factor: float = Field(4.0, gt=0)
    """With rope_scaling: those that turn more often than this are kept; in between they are mixed linearly."""
    rope_original_len: int = Field(8192, ge=1, le=2**24)
    """With rope_scaling: tokens of the sequences that the unscaled frequencies were trained on."""
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

    @model_validator(mode="after")
    def _scaling_fits(self) -> "ModelConfig":
        keys = type(self).model_fields
        for key in (key for key in ROPE_SCALING_KEYS if getattr(self, key) != keys[key].default):
            if self.rope_scaling == "none":
                raise ValueError(f'model.{key} has no effect with model.rope_scaling = "none"; remove it')
        if self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise ValueError(
                f"model.rope_low_freq_factor {self.rope_low_freq_factor:g} is not below model.rope_high_freq_factor "
                f"{self.rope_high_freq_factor:g}; lower the former or raise the latter"
            )
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.n_heads
