"""Growth in words: what will happen, and what became of which tensors."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.growth.tensors import LAYER, GrownTensor
from pretrain.config.schema import Config
from pretrain.config.stages import growth_time, model_size, tokens_of_a_time


def describe_stages(config: Config, flops: Sequence[float]) -> Iterator[str]:
    """A line per stage, `flops` being what each takes; none without growth.

    And a warning where the timing formula asks for more than it may have.
    """
    if not config.growth.enabled:
        return
    per_update = config.train.global_batch_size * config.train.seq_len
    for stage, cost in zip(config.stages, flops, strict=True):
        steps = stage.end - stage.start
        yield (
            f"stage {stage.index + 1} of {len(config.stages)}: {model_size(stage.config, config)} to step "
            f"{stage.end}, {steps * per_update:,} {tokens_of_a_time(config)}, {cost:.2e} FLOPs, "
            f"peak learning rate {stage.config.optimizer.lr:g}"
        )
    if config.growth.at == "formula":
        time = growth_time(config)
        if time.clamped:
            yield (
                f"growth.at: the formula asks for {time.formula_tokens:.3g} tokens, more than growth.max_fraction "
                f"{config.growth.max_fraction:g} of this run's; growing after {time.tokens:,}"
            )


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
