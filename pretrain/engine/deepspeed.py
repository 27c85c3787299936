"""What DeepSpeed is told when an engine begins, and what is taken from its hands when one ends."""

import sys
from collections.abc import Iterator
from typing import Any

import torch

from pretrain.config.schema import Config


def deepspeed_settings(config: Config, grad_accum_steps: int) -> dict[str, Any]:
    """Derive the DeepSpeed JSON from the run's configuration: one source of truth.

    At stage 0 the engine sees plain parameters (no bf16 block: it would take a hidden optimizer step
    on zero gradients) and Sparlow clips; from stage 1 on, ZeRO keeps fp32 masters, clips, and skips what is not finite.
    """
    zero_stage = config.parallel.zero_stage
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps,
        "zero_optimization": {"stage": zero_stage},
        # Always named: 0.19 clips at 1.0 when the key is missing.
        "gradient_clipping": config.train.grad_clip if zero_stage else 0.0,
        "steps_per_print": 10**9,
    }
    if zero_stage and config.train.dtype == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.parallel.offload == "optimizer":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        # The update is torch.optim.AdamW's: DeepSpeed's own CPU optimizer would be compiled at the first start.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def release(deepspeed: Any) -> None:
    """Forget `deepspeed`, an engine after its `destroy()`, where DeepSpeed 0.19 still holds it.

    With fp32 masters every parameter gets methods bound to that same parameter; at stage 1 in bf16
    gc does not free such a cycle. At stage 3 two globals outlive the engine, each leading to the model, the partitions
    and the optimizer: a stack of the modules in their forward pass, whose bottom is the model, pushed for ever; and the
    parameters to release after a module, cached on the coordinator's class with the coordinator in the key. Another
    engine's entries of that cache are computed again when it needs them. And torch.nn.functional.linear stays one for
    sharded weights, for every model after it: it goes back to PyTorch's, and the next engine of stage 3 replaces it.

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
    partitioning = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    replaced = getattr(partitioning, "InsertPostInitMethodToModuleSubClasses", None)
    torch.nn.functional.linear = getattr(replaced, "linear_bk", torch.nn.functional.linear)


def _method_caches(owner: type) -> Iterator[Any]:
    """The `functools` caches on methods of `owner`, also below one more decorator."""
    for member in vars(owner).values():
        below = [cell.cell_contents for cell in getattr(member, "__closure__", None) or ()]
        yield from (function for function in (member, *below) if hasattr(function, "cache_clear"))
