"""What makes forward passes of one token each cheap: all that depends on the weights alone is computed once."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from model.linear.support.element import ElementSparse
from model.linear.supported import SupportedLinear
from model.transformer import Transformer
from pretrain.engine.kernel_choices import weights_kept
from pretrain.machine.hardware import free_bytes


@contextlib.contextmanager
def decoding(model: Transformer) -> Iterator[None]:
    """Inside, where parameters do not change, every W is built once and every parameter is cast once.

    Each of the two is done if what it keeps fits half of the free memory. Numbers stay the same, but for the rounding
    of products with W in place of those with its factors. W of 8-bit codes is dequantised at every token, as ever: it
    is there to save memory.
    """
    with weights_kept(model, one_token=True), casts_kept(model):
        yield


@contextlib.contextmanager
def casts_kept(model: Transformer) -> Iterator[None]:
    """Inside, modules hold parameters in the compute dtype, if the copies fit half of the free memory.

    Modules cast parameters where they use them, which then does nothing. The parameters themselves stay as they are,
    outside of the model meanwhile. Factors of a W that is kept are not asked for, so they are left out.
    """
    wider: list[tuple[nn.Module, str, Tensor]] = []
    dtype, device = model.compute_dtype, next(model.parameters()).device
    for module in model.modules():
        if not _keeps_weight(module):
            own = module.named_parameters(recurse=False)
            wider += [(module, name, parameter) for name, parameter in own if parameter.dtype != dtype]
    if sum(parameter.numel() for *_, parameter in wider) * dtype.itemsize > free_bytes(device) / 2:
        yield
        return
    try:
        for module, name, parameter in wider:
            # A module takes a plain tensor here, though not by setattr; torch.func.functional_call does the same.
            module._parameters[name] = parameter.detach().to(dtype)  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in wider:
            module._parameters[name] = parameter  # type: ignore[assignment]


def _keeps_weight(module: nn.Module) -> bool:
    support = module.support if isinstance(module, SupportedLinear) else None
    return isinstance(support, ElementSparse) and support.choice is not None and support.choice.keep == "step"
