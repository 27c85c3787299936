"""Which choices of an optimizer fit each other."""

from model.errors import UserError
from pretrain.optim.basis import BITS
from pretrain.optim.element_config import ElementConfig
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.rules import RULES

OF_ADAPTIVE = ("refresh_overlap", "refresh_threshold", "max_proj_gap")


def require_coherent(config: ElementConfig) -> None:
    """UserError when one choice contradicts another, or has no effect beside it."""
    if config.embedding_moments != "same" and config.moments != "8bit":
        raise UserError(
            f'optimizer.embedding_moments = "{config.embedding_moments}" has no effect with optimizer.moments = '
            f'"{config.moments}", which leaves them in fp32 anyway; remove it'
        )
    if isinstance(config, MatrixConfig):
        _matrix(config)


def _matrix(config: MatrixConfig) -> None:
    if config.projector not in PROJECTORS:
        raise UserError(f"optimizer.projector {config.projector!r} is unknown; choose one of {', '.join(PROJECTORS)}")
    _accumulators(config)
    _projection(config)
    _refresh(config)


def _accumulators(config: MatrixConfig) -> None:
    if config.accumulators == "device":
        return
    if RULES[config.rule].needs != "projected":
        raise UserError(
            f'optimizer.accumulators = "host" has no effect with optimizer.name = "{config.name}", which sums whole '
            'gradients; set "device"'
        )
    if config.update == "per_layer":
        raise UserError(
            'optimizer.accumulators = "host" has no effect with optimizer.update = "per_layer", which sums nothing; '
            'set "device"'
        )


def _projection(config: MatrixConfig) -> None:
    rule, name = RULES[config.rule], f'optimizer.projection = "{config.projection}"'
    if config.projection != "fp32" and not rule.uses_basis:
        raise UserError(
            f'{name} has no effect with optimizer.name = "{config.name}", which has no basis, or moves its own in fp32 '
            "by steps too small for fewer bits; remove it"
        )
    if config.projection not in BITS:
        return
    if rule.exact_basis:
        raise UserError(
            f'{name} gives bases that are not quite orthonormal, but optimizer.name = "{config.name}" also trains with '
            'what they leave out of the gradient; set "bf16" or "fp32"'
        )
    if config.rotate_moments:
        raise UserError(
            f'{name} gives bases that are not quite orthonormal, which optimizer.rotate_moments needs; set "bf16" or '
            '"fp32", or rotate_moments to false'
        )


def _refresh(config: MatrixConfig) -> None:
    if config.refresh == "fixed":
        for key in OF_ADAPTIVE:
            if getattr(config, key) != type(config).model_fields[key].default:
                raise UserError(
                    f'optimizer.{key} has no effect with optimizer.refresh = "fixed"; remove it, or set "adaptive"'
                )
        return
    if not RULES[config.rule].uses_basis:
        raise UserError(
            f'optimizer.refresh = "adaptive" has no effect with optimizer.name = "{config.name}", whose basis has no '
            'refreshes that could be left out; set "fixed"'
        )
    if not PROJECTORS[config.projector].needs_gradient:
        raise UserError(
            f'optimizer.refresh = "adaptive" follows how much bases change, but projector {config.projector} draws '
            'them at random; set "fixed", or another projector'
        )
    if 0 < config.max_proj_gap < config.update_proj_gap:
        raise UserError(
            f"optimizer.max_proj_gap {config.max_proj_gap} is less than optimizer.update_proj_gap "
            f"{config.update_proj_gap}, at which gaps begin; raise it, or set 0"
        )
