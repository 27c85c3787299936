"""How long activations that wait in host memory are on their way, and whether the computation covers it."""

from collections.abc import Iterator
from typing import Any

from model.config import ModelConfig
from model.counts import projection_shapes
from pretrain.config.schema import Config
from pretrain.loop.build import computed_in

PCIE = 12e9
"""Assumed bytes per second in one direction: PCIe 4.0 with 8 lanes, or 3.0 with 16, which have 15.75e9 by their rate of
signalling, less about a quarter for packets. A card with 16 lanes of PCIe 4.0 has twice as much."""


def transfers(config: Config, speed: float) -> dict[str, Any]:
    """Bytes of one micro-step that go out and come back, and their seconds at PCIE; {} without offloaded activations.

    With `speed`, in FLOP/s: `covered`, whether one input is copied (`seconds_per_input`) while the shorter part of a
    block computes its forward pass (`seconds_of_part`). That is the tightest place: a part's backward pass, with the
    part computed again, takes three times as long and covers one copy too.
    """
    train, model = config.train, config.model
    if not train.offload_activations:
        return {}
    inputs = 2 * len(range(0, model.n_layers, train.checkpoint_every_layers)) - 1
    tokens = train.micro_batch_size * train.seq_len
    size = tokens * model.dim * computed_in(config).itemsize
    found: dict[str, Any] = {"inputs": inputs, "bytes": 2 * inputs * size, "bytes_per_second": PCIE}
    found |= {"seconds": 2 * inputs * size / PCIE, "seconds_per_input": size / PCIE}
    if speed:
        found["seconds_of_part"] = shorter_part(model, tokens, train.seq_len) / speed
        found["covered"] = found["seconds_per_input"] <= found["seconds_of_part"]
    return found


def shorter_part(model: ModelConfig, tokens: int, seq_len: int) -> int:
    """FLOPs of the forward pass of a block's attention or feed-forward, whichever has fewer, with dense linears."""
    sizes = [n_in * n_out for n_in, n_out in projection_shapes(model).values()]
    attention = 2 * tokens * sum(sizes[:4]) + 4 * tokens * seq_len * model.n_heads * model.head_width
    return min(attention, 2 * tokens * sum(sizes[4:]))


def describe_transfers(figures: dict[str, Any]) -> Iterator[str]:
    """A line of `transfers`' figures; none without."""
    if not figures:
        return
    rate = f"{figures['bytes'] / 1e9:.1f} GB at {figures['bytes_per_second'] / 1e9:g} GB/s, assumed"
    yield f"PCIe time         {figures['seconds']:>22.2f}  s per micro-step ({rate})"
    if "covered" in figures:
        one, part = (1000 * figures[key] for key in ("seconds_per_input", "seconds_of_part"))
        how = "hidden behind" if figures["covered"] else "longer than"
        yield f"  an input's copy {one:>22.1f}  ms, {how} the {part:.1f} ms that half a block computes meanwhile"
