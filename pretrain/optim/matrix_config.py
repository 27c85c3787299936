"""What all matrix optimizers have in common to configure; each rule's `Config` adds its own keys and defaults."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.optim.element_config import ElementConfig

OF_SUMS = frozenset({"accumulators"})
"""Keys that say nothing to a rule that needs whole gradients."""

OF_BASES = frozenset(
    {"projector", "projection", "refresh", "refresh_overlap", "refresh_threshold", "max_proj_gap", "refresh_stagger"}
)
"""Keys that say nothing to a rule whose basis the optimizer neither finds nor keeps."""


class MatrixConfig(ElementConfig):
    """A matrix optimizer: projector x moments x rule x weights."""

    decay_after = True
    quantised: ClassVar[tuple[tuple[str, str], ...]] = (("moments", "8bit"),)
    """Choices (key, value), any of which makes 1e-8 and `quantised_eps_mode` the defaults of eps and eps_mode, as in
    the quantised releases of GaLore, GoLore, SARA, APOLLO, Online Subspace Descent, SubTrack++ and GradNormLoRP. Fira
    has none: at gradients of RMS 1e-6 the 1e-6 of its release would leave 0.05 to 0.3 of an update for 100 steps."""
    quantised_eps_mode: ClassVar[Literal["galore", "torch"]] = "torch"

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
