"""A memory plan as text."""

from collections.abc import Iterator
from typing import Any

from pretrain.config.schema import Config
from pretrain.memory_plan.cards import GIB, fragmentation
from pretrain.memory_plan.levers import describe, larger_micro_batch, proposals


def describe_memory(config: Config, figures: dict[str, Any]) -> Iterator[str]:
    """A line per item of `pretrain.plan.plan`'s figures at the worst moment, largest first, and what it fits."""
    items = {name: size for name, size in figures["memory_bytes"].items() if name != "total"}
    total, reserve = figures["memory_bytes"]["total"], figures["reserve"]
    yield f"memory per process at the worst moment ({figures['memory_worst_phase']}):"
    for name, size in sorted(items.items(), key=lambda item: -item[1]):
        yield f"  {name.replace('_', ' '):<15} {size / GIB:>22.3f}  GiB"
    phases = ", ".join(f"{name} {moment['total'] / GIB:.2f}" for name, moment in figures["memory_phases"].items())
    yield f"  {'total':<15} {total / GIB:>22.3f}  GiB  ({phases})"
    assumed = f"assumed: 1 GiB for CUDA, {100 * fragmentation(config):g} % for the allocator"
    yield f"  {'reserve':<15} {reserve / GIB:>22.3f}  GiB  ({assumed})"
    if figures["host_memory_bytes"]:
        yield f"  {'in host memory':<15} {figures['host_memory_bytes'] / GIB:>22.3f}  GiB  (besides)"
    if figures["checkpoint_copy_bytes"]:
        where = "in host memory; checkpoint.background = false needs none"
        yield f"  {'checkpoint copy':<15} {figures['checkpoint_copy_bytes'] / GIB:>22.3f}  GiB  ({where})"
    fitting = [size for size, fits in figures["fits"].items() if fits]
    yield f"fits a GPU of     {fitting[0] + ' or more' if fitting else 'no size known here':>22}"


def describe_changes(config: Config, world_size: int, card_bytes: int, figures: dict[str, Any]) -> Iterator[str]:
    """Whether it fits `card_bytes`; if not, what to change, and otherwise a larger micro-batch that fits too."""
    needed, size = figures["memory_bytes"]["total"] + figures["reserve"], f"{card_bytes / GIB:g} GiB"
    if needed <= card_bytes:
        yield f"fits {size}: {(card_bytes - needed) / GIB:.2f} GiB to spare"
        if change := larger_micro_batch(config, world_size, card_bytes):
            yield f"  and has room for {describe(change)}: fewer micro-steps of more tokens"
        return
    yield f"does not fit {size}: {(needed - card_bytes) / GIB:.2f} GiB missing"
    changes = proposals(config, world_size, card_bytes)
    if not changes:
        yield "no change that is known here, nor two of them, would make it fit; take more GPUs or a smaller model"
    for change in changes:
        yield f"  would fit with {describe(change)}"
