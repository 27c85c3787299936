"""What optimizers of Sparlow's own have in common to configure, and what all matrix optimizers have besides.

Each rule's `Config` adds its own keys and defaults.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from model.linear.ranks import RankTable
from model.schema import Frozen

Beta = Annotated[float, Field(ge=0, lt=1)]


class OwnConfig(Frozen):
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
    grams: bool = False
    """Give an update's magnitudes the gradient's signs (arXiv 2412.17107)."""
    orthograd: bool = False
    """Take the part along the weight out of each gradient, at the gradient's norm (arXiv 2501.04697)."""
    factor_lr_ratio: float = Field(1.0, gt=0)
    """Learning rate of the linears' B factors over that of everything else (LoRA+, arXiv 2402.12354)."""

    def lr_ratio(self, name: str) -> float:
        """The learning rate of the parameter `name` over the run's."""
        return self.factor_lr_ratio if name.endswith(".B") else 1.0


OF_SUMS = frozenset({"accumulators"})
"""Keys that say nothing to a rule that needs whole gradients."""

OF_WHOLES = frozenset({"orthograd"})
"""Keys that say nothing to a rule that sees projected gradients alone."""

OF_BASES = frozenset(
    {"projector", "projection", "refresh", "refresh_overlap", "refresh_threshold", "max_proj_gap", "refresh_stagger"}
)
"""Keys that say nothing to a rule whose basis the optimizer neither finds nor keeps."""


class MatrixConfig(OwnConfig):
    """A matrix optimizer: projector x moments x rule x weights."""

    decay_after = True
    quantised: ClassVar[tuple[tuple[str, str], ...]] = (("moments", "8bit"),)
    """Choices (key, value), any of which makes 1e-8 and `quantised_eps_mode` the defaults of eps and eps_mode, as in
    the quantised releases of GaLore, GoLore, SARA, APOLLO, Online Subspace Descent, SubTrack++ and GradNormLoRP. Fira
    has none: at gradients of RMS 1e-6 the 1e-6 of its release would leave 0.05 to 0.3 of an update for 100 steps."""
    quantised_eps_mode: ClassVar[Literal["galore", "torch"]] = "torch"

    rank: int = Field(128, ge=1)
    """Dimensions of the subspace; at most the smaller side of every target."""
    ranks: RankTable = ()
    """Ranks of linears by patterns of their names, in place of `rank`; the last pattern that matches decides."""
    update_proj_gap: int = Field(200, ge=1)
    """Steps between two refreshes of a matrix's basis."""
    scale: float = Field(0.25, gt=0)
    """Factor of the projected update."""
    proj_type: Literal["std", "reverse_std", "left", "right"] = "std"
    """The side that is projected. std: the smaller one. reverse_std: the larger one."""
    projector: str = "subspace_iteration"
    """How a basis is found: a member of PROJECTORS."""
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
    accumulators: Literal["device", "host"] = "device"
    """Where projected gradients are summed over micro-steps. host: in pinned memory beside the GPU."""
    refresh_stagger: bool = True
    """Refresh the bases at different steps. false: all at step 0 and every update_proj_gap steps, as published."""
    rotate_moments: bool = False
    """Carry the moments into the new basis at a refresh."""
    targets: tuple[str, ...] = Field(("*.weight",), min_length=1)
    """Patterns of the names of the linears' parameters to project; the rest takes AdamW."""

    @model_validator(mode="before")
    @classmethod
    def _eps_of_the_release(cls, given: Any) -> Any:
        """Fill in eps and eps_mode where the release's depend on another choice, so that they are recorded."""
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        if any(given.get(key, fields[key].default) == value for key, value in cls.quantised):
            return {"eps": 1e-8, "eps_mode": cls.quantised_eps_mode} | given
        return given
