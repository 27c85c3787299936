"""One step of each matrix optimizer against its released algorithm and fused AdamW, refreshes of bases included."""

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.build import shape_of_model
from model.linear.dense import Dense
from model.transformer import Transformer
from pretrain.bench.released import RELEASED, Released
from pretrain.bench.timing import DTYPES, OURS, Clock, Work, clock_for, ratio_row, take_turns
from pretrain.config import load_config
from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_optimizer import MatrixOptimizer
from pretrain.optim.projector.base import initial_basis
from pretrain.optim.refresh import is_due
from pretrain.optim.rules import PRESETS
from pretrain.optim.targets import find_targets

CONFIGS = Path(__file__).parents[2] / "configs"
LR = 1e-6
"""A step so small that hundreds of calls leave the weights as they are."""

ADAMW = "fused AdamW, fp32"
QUIET = 10_000
"""A number of steps that is a multiple of every gap; the bases are found."""


@dataclass(frozen=True)
class Size:
    """A shipped model: its blocks that are stepped (all, where they fit a GPU four times over) and the rank."""

    blocks: int
    rank: int


SIZES = {"60m": Size(8, 128), "1b": Size(24, 512), "7b": Size(8, 1024)}


def bench_optimizers(
    device: torch.device, size: str, dtypes: list[str], turns: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of all methods (keys of RELEASED) at `size` (a key of SIZES); products are in each of `dtypes`.

    Per method and peer three rows: an ordinary step, the mean of the update_proj_gap steps between two refreshes with
    all their work, and the slowest of all steps. Gradients are random numbers: the flattest spectrum there is, to which
    the bases owe nothing. The time of an exact SVD is measured once per shape and taken times the matrices of it.
    """
    clock = clock_for(device)
    model = _shape(size)
    random = torch.Generator(device).manual_seed(0)
    named = [
        (name, nn.Parameter(torch.randn(p.shape, generator=random, device=device) * 0.02))
        for name, p in model.named_parameters()
    ]
    gradients = [torch.randn(p.shape, generator=random, device=device) * 1e-3 for _, p in named]
    rows = []
    for dtype in dtypes:
        for method in RELEASED:
            if method in PRESETS:
                say(f"{method}, {size}, {dtype}")
                rows += _Method(clock, model, size, method, DTYPES[dtype], named, gradients).rows(turns, dtype)
    return rows


class _Method:
    """Ours and the peers, on the same weights and gradients."""

    def __init__(
        self,
        clock: Clock,
        model: Transformer,
        size: str,
        method: str,
        products: torch.dtype,
        named: list[tuple[str, nn.Parameter]],
        gradients: list[Tensor],
    ):
        self.clock, self.size, self.method = clock, size, method
        self.named, self.gradients = named, gradients
        preset = PRESETS[method].Config
        rank = 1 if preset.model_fields["rank"].default == 1 else SIZES[size].rank
        self.config = preset.model_validate({"name": method, "lr": LR, "rank": rank})
        targets = find_targets(model, self.config)
        self.ours = MatrixOptimizer(named, targets, self.config, seed=0, products=products)
        self.ours.updates = QUIET - 1
        while self._due(self.ours.updates):  # go on to a step at which no matrix is due
            self._our_step(self.ours.updates)
        self.released = {"released, fp32": self._released(torch.float32)}
        if products == torch.bfloat16:
            self.released["released, bf16 throughout"] = self._released(torch.bfloat16)
        self.adamw = torch.optim.AdamW([p for _, p in named], lr=LR, weight_decay=0.0, fused=True)

    def rows(self, turns: int, dtype: str) -> list[dict[str, Any]]:
        quiet = self.ours.updates
        contestants: dict[str, Work] = {OURS: partial(self._our_step, quiet)}
        contestants |= {name: peer.step for name, peer in self.released.items()}
        contestants[ADAMW] = partial(self._step, self.adamw)
        seconds = take_turns(contestants, self.clock, turns, cold=False)
        ordinary = {name: statistics.median(taken) for name, taken in seconds.items()}
        refresh = self._our_refresh(turns)
        mean = {OURS: [ordinary[OURS] + refresh], ADAMW: [ordinary[ADAMW]]}
        slowest = {OURS: [self._our_slowest(turns, ordinary[OURS])], ADAMW: [ordinary[ADAMW]]}
        for name, peer in self.released.items():
            bases = self._released_bases(peer)
            mean[name] = [ordinary[name] + bases / self.config.update_proj_gap]
            slowest[name] = [ordinary[name] + bases]
        kinds = {"ordinary step": seconds, f"mean of {self.config.update_proj_gap} steps": mean}
        kinds["slowest step"] = slowest
        shape = f"{self.size}, {len(self.ours.targets)} matrices, rank {self.config.rank}"
        return [
            ratio_row(f"{self.method}, {kind}", shape, dtype, self.clock.device, times[OURS], peer, times[peer])
            for kind, times in kinds.items()
            for peer in [*self.released, ADAMW]
        ]

    def _our_step(self, updates: int) -> None:
        self.ours.updates = updates
        self._step(self.ours)

    def _step(self, optimizer: torch.optim.Optimizer | MatrixOptimizer) -> None:
        for (_, parameter), gradient in zip(self.named, self.gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    def _due(self, updates: int) -> list[int]:
        count = len(self.ours.targets) if self.ours.rule.uses_basis else 0
        return [i for i in range(count) if is_due(self.config, i, count, updates)]

    def _our_refresh(self, turns: int) -> float:
        """Seconds per step that finding all bases anew, each from a random one, comes to."""
        if not self.ours.rule.uses_basis:
            return 0.0
        gradients = {name: gradient for (name, _), gradient in zip(self.named, self.gradients, strict=True)}
        targets = {target.matrix.shape: target for target in self.ours.targets}
        count = Counter(target.matrix.shape for target in self.ours.targets)
        total = 0.0
        for shape, target in targets.items():
            find = partial(self._find, target.matrix, gradients[target.name])
            total += count[shape] * statistics.median(self.clock.seconds(find, 1, cold=False) for _ in range(turns))
        return total / self.config.update_proj_gap

    def _find(self, matrix: Matrix, gradient: Tensor) -> None:
        start = self._start(matrix)
        self.ours.refresher.projector.basis(matrix, matrix.left_form(gradient), start, torch.Generator())

    def _start(self, matrix: Matrix) -> Tensor:
        return initial_basis(matrix, torch.Generator().manual_seed(1), self.clock.device)

    def _our_slowest(self, turns: int, ordinary: float) -> float:
        """The step of the first and the later refreshes that has most to find."""

        def work(updates: int) -> int:
            return sum(math.prod(self.ours.targets[i].matrix.shape) for i in self._due(updates))

        gap = self.config.update_proj_gap
        worst = max(range(2 * gap), key=work)
        if not work(worst):
            return ordinary
        taken = []
        for _ in range(turns):
            for i in self._due(worst):
                basis = self.ours.targets[i].basis
                assert basis is not None
                basis.write(self._start(self.ours.targets[i].matrix))
            taken.append(self.clock.seconds(partial(self._our_step, worst), 1, cold=False))
        return statistics.median(taken)

    def _released(self, dtype: torch.dtype) -> Released:
        """The released algorithm with random bases, as finding them is timed by itself."""
        targets = {target.name for target in self.ours.targets}
        projected: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for (name, p), gradient in zip(self.named, self.gradients, strict=True):
            (projected if name in targets else others).append((p.detach().to(dtype), gradient.to(dtype)))
        peer = RELEASED[self.method](projected, others, self.config.rank, self.config.scale, LR)
        for W, _ in projected:
            rows, cols = W.shape
            size = (self.config.rank, cols) if rows >= cols else (rows, self.config.rank)
            peer.state[id(W)] = {"P": torch.randn(size, device=W.device, dtype=dtype) * max(size) ** -0.5}
        return peer

    def _released_bases(self, peer: Released) -> float:
        """Seconds to find all bases at one step."""
        if self.method == "online_subspace":
            return 0.0  # but for the first step
        shapes = {W.shape: G for W, G in peer.projected}
        count = Counter(W.shape for W, _ in peer.projected)
        return sum(
            count[shape] * min(self.clock.seconds(partial(peer.find_basis, G), 1, cold=False) for _ in range(2))
            for shape, G in shapes.items()
        )


def _shape(size: str) -> Transformer:
    """The model, without memory."""
    config = load_config(CONFIGS / f"llama_{size}_dense.toml").model
    return shape_of_model(config.model_copy(update={"n_layers": SIZES[size].blocks}), Dense.Config())
