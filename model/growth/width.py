"""Growth in width of a model's state, its function unchanged: every channel is copied equally often (arXiv 2409.12903).

A copy of a channel carries the number that the channel did, so of a matrix that puts out more channels the rows are
copied; and what reads them would count each as often as there are copies, so its columns are copied and shared: the
copies of a column sum to it. Heads are copied whole. RMSNorm's mean square is that of the small model because every
channel has equally many copies, which is why only multiples will do (bert2BERT, arXiv 2110.07143, is exact there too).

Even shares would leave the copies of a channel equal for ever: equal weights have equal gradients. So every element has
uneven ones, drawn for itself. (One share for a whole column would not do: the gradients of copies would differ by no
more than a factor at first, which Adam takes out again.)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from kernels.support import TileSupport
from model.config import ModelConfig
from model.counts import in_block, projection_shapes
from model.errors import UserError
from model.growth.linears import LINEAR, State, grow_density
from model.growth.shapes import WIDTHS, same_widths, width_of
from model.growth.tensors import LAYER, GrownTensor
from model.linear import LINEARS, LinearConfig, build_linear
from model.seeding import generator

SHARE_SPREAD = 2.0
"""The default of how far a share is from an even one, in parts of it, before the shares of a channel are made to sum to
1. What arXiv 2409.12903 adds, noise 10 dB below the weights, is that of 0.8."""

PARTS = {"weight", "A", "B", "values", "support.loc", "support.tile_ptr"}
"""Tensors of a linear of which is known what they are in a wider one."""

AXES = {
    "attention.q_proj": ("dim", "n_heads"),
    "attention.k_proj": ("dim", "n_kv_heads"),
    "attention.v_proj": ("dim", "n_kv_heads"),
    "attention.o_proj": ("n_heads", "dim"),
    "feed_forward.gate_proj": ("dim", "ffn_dim"),
    "feed_forward.up_proj": ("dim", "ffn_dim"),
    "feed_forward.down_proj": ("ffn_dim", "dim"),
}
"""What the inputs and the outputs of each linear of a block are."""


READERS = frozenset({"weight", "A", "values"})
"""Tensors that the inputs of a linear are multiplied with."""


def require_linears_widen(
    small: ModelConfig, large: ModelConfig, old: LinearConfig, new: LinearConfig, how: str = "copy"
) -> None:
    """UserError where linears `old` cannot become wider, or `new` have too few entries for all that there will be.

    `how` is growth.width: with "zero" every entry stays one, else it is copied.
    """
    if same_widths(small, large):
        return
    if getattr(old, "support", "element") != "element":
        raise UserError(
            f'growth: linear.support = "{old.support}" cannot grow in width, where blocks may have another size; set '
            '"element", or keep the widths'
        )
    part, (n_in, n_out) = next(iter(projection_shapes(large).items()))
    with torch.device("meta"):
        built = build_linear(in_block(large, new), n_in, n_out, part)
    parts, trained = built.state_dict(), {name for name, _ in built.named_parameters()}
    if unknown := parts.keys() - PARTS:
        raise UserError(
            f'growth: linear.name = "{old.name}" cannot grow in width, as its {min(unknown)} has no copy in a wider '
            "model; keep the widths, or set other linears"
        )
    if how == "zero" and not trained & READERS:
        raise UserError(
            f'growth.width = "zero" with linear.name = "{old.name}": what reads the new inputs would stay zero, as it '
            'is frozen; set growth.width = "copy", or other linears'
        )
    if "values" not in parts:
        return
    count, wider = LINEARS[old.name].count_entries, projection_shapes(large)
    old, new = in_block(small, old), in_block(large, new)
    for part, shape in projection_shapes(small).items():
        times = 1 if how == "zero" else wider[part][0] // shape[0] * (wider[part][1] // shape[1])
        copied, held = times * count(old, *shape), count(new, *wider[part])
        if held < copied:
            raise UserError(
                f"growth: linear.density {new.density} holds {held} entries of {part}, and {copied} come of the small "
                "model's; raise it in the grown model"
            )


class Copies:
    """Which channel of the small model each one of the grown model is a copy of, along one axis.

    Channels are `groups` of `within`: a head, which is copied whole, or a single one. The copies of a group follow it,
    so that a key and value head stays that of the copies of its query heads.
    """

    def __init__(self, key: str, small: ModelConfig, large: ModelConfig):
        self.groups, after = width_of(small, key), width_of(large, key)
        if after % self.groups or small.head_width != large.head_width:
            raise UserError(f"growth: model.{key} {self.groups} cannot grow to {after}; growth makes whole copies")
        self.times, self.within = after // self.groups, small.head_width if "heads" in key else 1
        self.before, self.after = self.groups * self.within, after * self.within

    @property
    def source(self) -> Tensor:
        """The channel of the small model for each (after,) of the grown one."""
        channels = torch.arange(self.before).view(self.groups, 1, self.within)
        return channels.expand(-1, self.times, -1).flatten()

    @property
    def places(self) -> Tensor:
        """The copies (before, times) of each channel of the small model."""
        return torch.arange(self.after).view(self.groups, self.times, self.within).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Shares:
    """What copies have of a weight."""

    seed: int
    spread: float

    def of_copies(self, weights: Tensor, dim: int, name: str) -> Tensor:
        """Shares of `weights`, whose copies lie along `dim`: along it they sum to the weight."""
        random, times = generator(self.seed, "share", name), weights.shape[dim]
        uneven = torch.empty(weights.shape).uniform_(-self.spread, self.spread, generator=random)
        uneven -= uneven.mean(dim, keepdim=True)
        return uneven.add_(1).div_(times).mul_(weights).to(weights.dtype)

    def of_columns(self, wide: Tensor, inputs: Copies, name: str) -> Tensor:
        """Shares of the copies of columns in `wide` (..., inputs)."""
        copies = wide.unflatten(-1, (inputs.groups, inputs.times, inputs.within))
        return self.of_copies(copies, -2, name).flatten(-3)


def copy_width(
    tensors: Iterable[GrownTensor],
    small: ModelConfig,
    large: ModelConfig,
    linear: LinearConfig,
    seed: int,
    spread: float = SHARE_SPREAD,
) -> Iterator[GrownTensor]:
    """Turn the state of a model of the widths of `small`, with linears `linear`, into one of those of `large`.

    `tensors` as `grow_tensors` gives them: those of one linear follow each other. One linear is in memory at a time.
    Shares are uneven by `spread`, from (seed, name). The logits are those of before but for rounding of the stored
    weights. `require_growable` and `require_linears_widen` say beforehand whether it can; UserError where it cannot.
    """
    if same_widths(small, large):
        yield from tensors
        return
    copies, shares = {key: Copies(key, small, large) for key in WIDTHS}, Shares(seed, spread)
    linear = in_block(large, linear)
    for name, group in groupby(tensors, key=lambda item: (match := LINEAR.match(item.name)) and match[1]):
        if name is None:
            for item in group:
                yield _widened(item, _outside(item, copies["dim"], large.tie_embeddings, shares))
            continue
        items = {item.name.removeprefix(f"{name}."): item for item in group}
        match = LAYER.fullmatch(name)
        assert match
        inputs, outputs = (copies[key] for key in AXES[match[2]])
        state = {part: item.tensor for part, item in items.items()}
        for part, tensor in _linear(state, inputs, outputs, linear, shares, name).items():
            yield _widened(items[part], tensor)
        del items, state, tensor


def _widened(item: GrownTensor, tensor: Tensor) -> GrownTensor:
    return item._replace(tensor=tensor, zeroed=tensor.nbytes if item.zeroed else 0)


def _outside(item: GrownTensor, dim: Copies, tied: bool, shares: Shares) -> Tensor:
    """A tensor outside of the linears. The head reads channels; a tied one is the embedding, and the norm before it
    scales what it reads.
    """
    wide = item.tensor.index_select(-1, dim.source)
    reads = item.name == ("norm.weight" if tied else "lm_head.weight")
    return shares.of_columns(wide, dim, item.name) if reads else wide


def _linear(state: State, inputs: Copies, outputs: Copies, linear: LinearConfig, shares: Shares, name: str) -> State:
    """The state of the linear `name`, wider."""
    grown = dict(state)
    for part, tensor in state.items():
        if part == "weight":
            wide = tensor.index_select(0, outputs.source).index_select(1, inputs.source)
            grown[part] = shares.of_columns(wide, inputs, f"{name}.{part}")
        elif part == "A":
            grown[part] = shares.of_columns(tensor.index_select(1, inputs.source), inputs, f"{name}.{part}")
        elif part == "B":
            grown[part] = tensor.index_select(0, outputs.source)
        elif part not in PARTS:
            raise UserError(f"growth: {name}.{part} has no copy in a wider model; keep the widths")
    if "values" in state:
        support = TileSupport(state["support.loc"], state["support.tile_ptr"], (outputs.before, inputs.before))
        support, values = _copy_entries(support, state["values"], inputs, outputs, shares, f"{name}.values")
        # The wider matrix may hold a few entries more than the copies are, as each number of them is rounded down.
        held = LINEARS[linear.name].count_entries(linear, inputs.after, outputs.after)
        size = max(held, len(values))
        support, grown["values"] = grow_density(support, values, size, shares.seed, f"{name}.support")
        grown["support.loc"], grown["support.tile_ptr"] = support.loc, support.tile_ptr
    return grown


def _copy_entries(
    support: TileSupport, values: Tensor, inputs: Copies, outputs: Copies, shares: Shares, name: str
) -> tuple[TileSupport, Tensor]:
    """Every entry at all copies of its place; the values in a copy of its row are uneven shares of its own."""
    flat = support.flat().long()
    rows, columns = outputs.places[flat // inputs.before], inputs.places[flat % inputs.before]  # (nnz, times)
    places = rows[:, :, None] * inputs.after + columns[:, None, :]  # (nnz, copies of the row, copies of the column)
    copied = shares.of_copies(values[:, None, None].expand(places.shape), 2, name)
    return in_tile_order(places.flatten(), copied.flatten(), (outputs.after, inputs.after))


def in_tile_order(places: Tensor, values: Tensor, shape: tuple[int, int]) -> tuple[TileSupport, Tensor]:
    """The support of flat positions in any order, and their values in its order."""
    flat, order = places.sort()
    support = TileSupport.from_flat(flat, shape)
    return support, values[order][torch.searchsorted(flat, support.flat().long())]
