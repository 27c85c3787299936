"""Letting go of a destroyed DeepSpeed engine, so that its process can build another one."""

import sys
from collections.abc import Iterator
from typing import Any


def release(deepspeed: Any) -> None:
    """Forget `deepspeed`, an engine after its `destroy()`, where DeepSpeed 0.19 still holds it.

    With fp32 masters every parameter gets methods bound to that same parameter; at stage 1 in bf16
    gc does not free such a cycle. At stage 3 two globals outlive the engine, each leading to the model, the partitions
    and the optimizer: a stack of the modules in their forward pass, whose bottom is the model, pushed for ever; and the
    parameters to release after a module, cached on the coordinator's class with the coordinator in the key. Another
    engine's entries of that cache are computed again when it needs them.

    Where another DeepSpeed keeps such things elsewhere, nothing is found: that costs memory, never the run.
    """
    for parameter in deepspeed.module.parameters():
        for name, value in list(vars(parameter).items()):
            if getattr(value, "__self__", None) is parameter:
                delattr(parameter, name)
    offload = getattr(deepspeed.optimizer, "parameter_offload", None)
    if offload is None:
        return
    modules = {id(module) for module in deepspeed.module.modules()}
    stack = getattr(sys.modules[type(offload).__module__], "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if id(module) not in modules]
    for cache in _method_caches(type(getattr(offload, "param_coordinator", None))):
        cache.cache_clear()


def _method_caches(owner: type) -> Iterator[Any]:
    """The `functools` caches on methods of `owner`, also below one more decorator."""
    for member in vars(owner).values():
        below = [cell.cell_contents for cell in getattr(member, "__closure__", None) or ()]
        yield from (function for function in (member, *below) if hasattr(function, "cache_clear"))
