"""What all optimizers of our own have in common to configure: how a parameter that is not projected takes AdamW."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from model.schema import Frozen

Beta = Annotated[float, Field(ge=0, lt=1)]


class ElementConfig(Frozen):
    """AdamW, parameter by parameter, with a choice of moments, weights and time."""

    name: str
    decay_after: ClassVar[bool] = False
    """Whether weights decay after the update, as in the GaLore release, also where it leaves a whole parameter to
    bitsandbytes' CUDA kernels, or before it, as torch.optim.AdamW's do."""

    lr: float = Field(0.01, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment. Its default is that of the method's release, and 1e-8 with 8-bit moments:
    then eps_mode is torch, but for fira, subtrack and frugal."""
    eps_mode: Literal["galore", "torch"] = "galore"
    """galore: eps is added to the root as it is, and the step is bias-corrected. torch: after the correction."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay per step, times the learning rate; norm weights are never decayed."""
    moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "fp32"
    """How the moments of projected gradients are kept; with "8bit", those of all other parameters too."""
    embedding_moments: Literal["same", "fp32"] = "same"
    """How those of the embedding and the output head are kept. same: as those of other parameters."""
    weights: Literal["fp32_master", "bf16", "bf16_stochastic", "int8"] = "fp32_master"
    """fp32_master: weights in fp32. bf16: in bf16, rounded to nearest. bf16_stochastic: right on average. int8: dense
    linears in 8-bit codes, rounded stochastically, and all else in train.dtype, likewise where that is bf16."""
    update: Literal["step", "per_layer"] = "step"
    """step: all weights after the backward pass. per_layer: each inside of it, so that gradients never coexist."""
    cautious: bool = False
    """Drop the entries of an update whose sign is not the gradient's (arXiv 2411.16085)."""
    factor_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of the linears' B factors over that of everything else (LoRA+, arXiv 2402.12354)."""

    def lr_ratio(self, name: str) -> float:
        """The learning rate of the parameter `name` over the run's."""
        return self.factor_lr_ratio if name.endswith(".B") else 1.0
