"""What decides how much memory the operations of a model take."""

from collections.abc import Callable
from dataclasses import dataclass, field

from kernels.sparse_low_rank_linear.choice import Choice
from model.config import ModelConfig


@dataclass(frozen=True)
class Setting:
    """One process, one micro-batch."""

    model: ModelConfig
    batch: int
    """Sequences in a micro-batch."""
    seq_len: int
    compute: int
    """Bytes of an activation."""
    param: int
    """Bytes of a parameter as stored."""
    cuda: bool
    """Operations as on a GPU (fused RMSNorm, flash attention, Triton kernels) or as on a CPU."""
    liger: bool
    """Whether SwiGLU and RoPE are Liger Kernel's: GPU only."""
    checkpoint_every: int
    int8: bool = False
    """Whether dense linears keep codes of 8 bits."""
    choice: Callable[[tuple[int, int]], Choice] = field(default=lambda shape: Choice())
    """How a sparse-plus-low-rank linear of this shape (out, in) computes."""

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len

    @property
    def wide_weights(self) -> bool:
        """Whether an optimizer's rule changes matrices in fp32: parameters, or what codes of 8 bits stand for."""
        return self.param == 4 or self.int8

    @property
    def casts(self) -> bool:
        """Whether parameters are stored in another precision than they are computed with."""
        return self.param != self.compute

    def activation(self, width: int) -> int:
        """Bytes of one activation of `width` features."""
        return self.tokens * width * self.compute

    def pinned(self, size: int) -> int:
        """Bytes of host memory for `size`: what is page-locked beside a GPU, PyTorch rounds up to a power of two."""
        return 1 << (size - 1).bit_length() if self.cuda and size else size

    def checkpointed(self, layer: int) -> bool:
        """Whether the activations of block `layer` are recomputed."""
        return self.checkpoint_every > 0 and layer % self.checkpoint_every == 0
