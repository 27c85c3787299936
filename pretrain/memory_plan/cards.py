"""Whether a run fits a GPU."""

import re

from model.errors import UserError
from model.linear import LINEARS
from pretrain.config.schema import Config
from pretrain.memory_plan.memory import at_least, at_most, plan_memory

GIB = 1024**3

CARDS = (8, 12, 16, 24, 32, 48, 80, 141)
"""Memory of GPUs that are sold, in GiB."""

CONTEXT = GIB
"""Assumed for the CUDA context, its libraries' workspace and the loaded kernels; not part of PyTorch's tensors."""

FRAGMENTATION = 0.05
"""Assumed part of the tensors' peak that the allocator cannot use."""

EXPANDABLE_FRAGMENTATION = 0.02
"""Assumed part with train.expandable_segments."""


def fragmentation(config: Config) -> float:
    """Part of the peak that is assumed lost to fragmentation in this run."""
    return EXPANDABLE_FRAGMENTATION if config.train.expandable_segments else FRAGMENTATION


def reserve(total: int, lost: float = FRAGMENTATION) -> int:
    """Bytes beside the tensors' peak `total` that a GPU must have, the part `lost` of it to fragmentation. An
    assumption: no tensor shows them."""
    return CONTEXT + int(lost * total)


def fits(config: Config, world_size: int, card_bytes: int) -> bool:
    """Whether the run's peak and its reserve fit the card, with kernels chosen as they would be there."""
    if config.kernels.keep_weight == "auto" and _needed(config, at_most(config, world_size, card_bytes)) <= card_bytes:
        return True
    return _needed(config, plan_memory(config, world_size, card_bytes=card_bytes).total) <= card_bytes


def may_fit(config: Config, world_size: int, card_bytes: int) -> bool:
    """Whether `fits` is worth asking."""
    return _needed(config, at_least(config, world_size, card_bytes)) <= card_bytes


def fitting(config: Config, world_size: int) -> dict[int, bool]:
    """`fits` of every size in CARDS, in GiB. A card decides only how long a built W and its gradient are kept."""
    if LINEARS[config.linear.name].may_choose(config.linear):
        return {size: fits(config, world_size, size * GIB) for size in CARDS}
    needed = _needed(config, plan_memory(config, world_size).total)
    return {size: needed <= size * GIB for size in CARDS}


def _needed(config: Config, total: int) -> int:
    return total + reserve(total, fragmentation(config))


def parse_memory(text: str) -> int:
    """Bytes of a GPU's memory, e.g. "24GiB", "80GB" or "24"; UserError when it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) if match else 0.0
    if not match or not size:
        raise UserError(f"--gpu-memory {text!r} is no size of memory; write it as 24GiB")
    unit = {"gib": GIB, "gb": 1000**3, "mib": 1024**2}[(match[2] or "GiB").lower()]
    return int(size * unit)
