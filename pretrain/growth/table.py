"""What became of which tensors in a growth, for people to read."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from model.growth.tensors import LAYER, GrownTensor


@dataclass
class Row:
    """A group of tensors: their number, and the bytes of them that are copied, drawn anew and zero."""

    tensors: int = 0
    copied: int = 0
    drawn: int = 0
    zeroed: int = 0


class GrowthTable:
    """Collects tensors as they pass."""

    def __init__(self, optimizer: str):
        self.rows: dict[str, Row] = defaultdict(Row)
        self._optimizer = optimizer

    def add(self, item: GrownTensor) -> None:
        row = self.rows[_group(item.name)]
        row.tensors += 1
        row.zeroed += item.zeroed
        row.drawn += item.drawn
        row.copied += item.tensor.nbytes - item.zeroed - item.drawn

    def lines(self) -> Iterator[str]:
        """The table, a line each."""
        yield f"{'':20}{'tensors':>9}{'copied':>12}{'re-initialised':>16}{'zeroed':>12}  MiB"
        total = Row(*(sum(column) for column in zip(*(vars(row).values() for row in self.rows.values()), strict=True)))
        for name, row in [*self.rows.items(), ("all", total)]:
            yield f"{name:20}{row.tensors:>9}{_mib(row.copied):>12}{_mib(row.drawn):>16}{_mib(row.zeroed):>12}"
        yield {
            "reset": "the optimizer begins anew",
            "copy": "the optimizer goes on: its state is copied with the layers",
            "copy_reset_step": "the optimizer's state is copied with the layers, its step count begins anew",
        }[self._optimizer]


def _group(name: str) -> str:
    kind, _, name = name.partition(".")
    if kind == "optimizer":
        return "optimizer state"
    match = LAYER.fullmatch(name)
    part = match[2].split(".") if match else name.split(".")
    if part[0].endswith("norm"):
        return "norms"
    if match:
        return f"linears, {part[2]}"
    return {"tok_embeddings": "embedding", "lm_head": "head"}.get(part[0], part[0])


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f}" if size else "-"
