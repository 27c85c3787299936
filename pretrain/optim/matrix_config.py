"""What all matrix optimizers have in common to configure; a published method is a subclass with its own defaults."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from model.schema import Frozen

Beta = Annotated[float, Field(ge=0, lt=1)]


class MatrixConfig(Frozen):
    """A matrix optimizer: projector x moments x rule x weights."""

    name: str
    rule: ClassVar[str]
    """The member of RULES that turns a gradient into an update."""

    lr: float = Field(0.01, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    eps_mode: Literal["galore", "torch"] = "galore"
    """galore: eps is added to the root as it is, and the step is bias-corrected. torch: after the correction."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay per step, times the learning rate; norm weights are never decayed."""
    rank: int = Field(128, ge=1)
    """Dimensions of the subspace; at most the smaller side of every target."""
    update_proj_gap: int = Field(200, ge=1)
    """Steps between two refreshes of a matrix's basis."""
    scale: float = Field(0.25, gt=0)
    """Factor of the projected update."""
    proj_type: Literal["std", "reverse_std", "left", "right"] = "std"
    """The side that is projected. std: the smaller one. reverse_std: the larger one."""
    projector: str = "subspace_iteration"
    """How a basis is found: a member of PROJECTORS."""
    moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "fp32"
    """How the moments of projected gradients are kept."""
    projection: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    """How bases are kept. int8, int4: in codes that groups of 256 elements share a scale for (Q-GaLore)."""
    refresh: Literal["fixed", "adaptive"] = "fixed"
    """fixed: every update_proj_gap steps. adaptive: a matrix whose bases resemble each other doubles its own gap."""
    refresh_overlap: Literal["subspace", "first_vector"] = "subspace"
    """How alike two bases are. subspace: |P_old^T P_new|^2 / rank. first_vector: cosine of their first columns."""
    refresh_threshold: float = Field(0.4, ge=-1, le=1)
    """Mean overlap of 5 refreshes in a row at which a gap doubles."""
    max_proj_gap: int = Field(0, ge=0)
    """Largest gap that adaptive refreshes reach; 0 means 16 update_proj_gap."""
    weights: Literal["fp32_master", "bf16", "bf16_stochastic", "int8"] = "fp32_master"
    """fp32_master: weights in fp32. bf16: in bf16, rounded to nearest. bf16_stochastic: right on average. int8: dense
    linears in 8-bit codes, rounded stochastically, and all else in train.dtype, likewise where that is bf16."""
    update: Literal["step", "per_layer"] = "step"
    """step: all weights after the backward pass. per_layer: each inside of it, so that gradients never coexist."""
    refresh_stagger: bool = True
    """Refresh the bases at different steps. false: all at step 0 and every update_proj_gap steps, as published."""
    rotate_moments: bool = False
    """Carry the moments into the new basis at a refresh."""
    cautious: bool = False
    """Drop the entries of an update whose sign is not the gradient's (arXiv 2411.16085)."""
    factor_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of the linears' B factors over that of everything else (LoRA+, arXiv 2402.12354)."""
    targets: tuple[str, ...] = Field(("*.weight",), min_length=1)
    """Patterns of the names of the linears' parameters to project; the rest takes AdamW."""
