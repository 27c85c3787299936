"""One configuration on every card that is known: whether it fits, and how fast it would be."""

from collections.abc import Iterator, Sequence
from typing import Any

from pretrain.config.schema import Config
from pretrain.machine.gpus import GIB, GPUS
from pretrain.plan import MFU, parse_speed, plan


def plan_cards(config: Config, world_size: int, mfu: float | None = None) -> list[dict[str, Any]]:
    """The plan of `config` in brief for `world_size` GPUs of each kind in pretrain.machine.gpus, in their order.

    `spare_gib`: what is left of the card, or missing if below zero. `modelled_tokens_per_second` over all GPUs and
    `modelled_days` are those of `pretrain.plan.plan` at `mfu` of the card's peak, and None where the run does not fit,
    or the card cannot multiply as it asks: `multiplies`.
    `peak_from`: the source of that peak. UserError when `mfu` is no part of a peak.
    """
    rows = []
    for gpu in GPUS:
        figures = plan(config, world_size, gpu.memory_bytes, parse_speed(gpu.tflops, mfu), gpu)
        spare = gpu.memory_bytes - figures["memory_bytes"]["total"] - figures["reserve"]
        fits, seconds = spare >= 0, figures["seconds"]
        rows.append(
            {
                "gpu": gpu.label,
                "memory_gib": gpu.memory,
                "tflops": gpu.tflops,
                "fits": fits,
                "spare_gib": spare / GIB,
                "multiplies": not figures["flops_eight_bit"] or gpu.rates[config.train.products] > 0,
                "modelled_tokens_per_second": figures["modelled_tokens_per_second"] if fits else None,
                "modelled_days": seconds / 86400 if fits and seconds else None,
                "peak_from": gpu.source,
            }
        )
    return rows


def describe_cards(rows: Sequence[dict[str, Any]], world_size: int, mfu: float | None = None) -> Iterator[str]:
    """The table as text, a line per card; a run that does not fit has no speed."""
    part = f"{100 * (mfu or MFU):g} % of each card's peak assumed"
    yield f"modelled, not measured: {part}, on {world_size} of them"
    yield f"{'card':<24}{'GiB':>6}{'TFLOP/s':>9}  {'memory':<17}{'tokens/s':>9}{'days':>9}"
    for row in rows:
        room = f"{abs(row['spare_gib']):.1f} GiB {'to spare' if row['fits'] else 'missing'}"
        speed = (
            f"{row['modelled_tokens_per_second']:>9,.0f}{row['modelled_days']:>9,.1f}" if row["modelled_days"] else ""
        )
        speed = speed if row["multiplies"] else "  no FP8 products"
        yield f"{row['gpu']:<24}{row['memory_gib']:>6g}{row['tflops']:>9g}  {room:<17}{speed}".rstrip()
