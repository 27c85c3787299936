"""The bases of a matrix optimizer's targets: the first ones, when they are due, and how new ones are found."""

import math

import torch
from torch import Tensor

from model.seeding import generator
from pretrain.optim.config import MatrixConfig
from pretrain.optim.exchange import Exchange
from pretrain.optim.matrix import Matrix
from pretrain.optim.projector import PROJECTORS
from pretrain.optim.projector.base import initial_basis
from pretrain.optim.refresh import AdaptiveGap, is_due, overlap_of, subspace_overlap
from pretrain.optim.rules.base import Rule
from pretrain.optim.target import Basis, Target


class Refresher:
    """Gives each target of `rule` a basis and replaces it when it is due; owners find bases, every rank keeps them."""

    def __init__(self, config: MatrixConfig, rule: Rule, targets: list[Target], seed: int, exchange: Exchange):
        self.config, self.rule, self.targets, self.seed, self.exchange = config, rule, targets, seed, exchange
        self.projector = PROJECTORS[config.projector]()
        self.late_projector = PROJECTORS["random_orthogonal"]()
        self.late = False
        """Whether new bases are random: the run is near its end (`is_late`)."""
        self.refreshes = self.kept = 0
        """By this rank in this step: new bases, and those that a zero or non-finite gradient prevented."""
        self.overlaps: list[Tensor] = []
        """How much of the subspace has stayed (`subspace_overlap`, 0-d), for each basis that this rank has replaced in
        this step; a matrix's first basis, which replaces a random one, does not count, and a Gaussian one has none."""
        self._due: set[str] | None = None
        for target in targets if rule.uses_basis else ():
            P = self._initial_basis(target.matrix).to(target.weight.device)
            target.basis = Basis(P, config.projection)
            if config.refresh == "adaptive":
                target.gap = AdaptiveGap(config, target.index, len(targets))

    def due(self, target: Target, updates: int) -> bool:
        """Whether it is refreshed in this step, `updates` having been applied before; the same until `end_step`."""
        if self._due is None:  # asked several times for each target
            self._due = {t.name for t in self.targets if self._is_due(t, updates)}
        return target.name in self._due

    def end_step(self, applied: bool) -> None:
        """After a step's refreshes; `applied`: whether it counts as an update."""
        self._due = None
        self.refreshes = self.kept = 0
        self.overlaps = []
        for target in self.targets if applied else ():
            if target.gap is not None:
                target.gap.tick()

    def refresh(self, wholes: dict[str, Tensor], updates: int) -> None:
        """New bases for the targets that are due, from their gradients in left form, the mean over ranks on the owner.

        Collective.
        """
        due = [target for target in self.targets if target.basis is not None and self.due(target, updates)]
        overlaps = {t.name: torch.full((), math.nan, device=t.weight.device) for t in due}
        for target in due:
            if target.owner == self.exchange.rank:
                overlaps[target.name].fill_(self.new_basis(target, wholes[target.name], updates))
        kept = [(t.owner, t.basis.tensors) for t in due if t.basis is not None]
        self.exchange.send((owner, tensor) for owner, tensors in kept for _, tensor in sorted(tensors.items()))
        if self.config.refresh == "adaptive":
            self.exchange.send((t.owner, overlaps[t.name]) for t in due)
            for target in due:
                self.reschedule(target, overlaps[target.name].item())

    def new_basis(self, target: Target, G: Tensor, updates: int) -> float | Tensor:
        """Find a basis; returns its overlap with the old one if refreshes are adaptive, else 0; NaN keeps the old."""
        assert target.basis is not None
        old = target.basis.read()
        random = generator(self.seed, "refresh", target.name, updates)
        projector = self.late_projector if self.late else self.projector
        found = projector.basis(target.matrix, G, old, random)
        if found is None:
            self.kept += 1
            return math.nan
        self.refreshes += 1
        target.basis.write(found)
        new = target.basis.read()  # as it will be used
        if updates >= self.config.update_proj_gap and self.config.projector != "gaussian":
            self.overlaps.append(subspace_overlap(old, new))
        self.rule.change_basis(target.matrix, target.state, old, new, updates + 1)
        return overlap_of(self.config, old, new) if target.gap is not None else 0.0

    def reschedule(self, target: Target, overlap: float) -> None:
        """The next refresh of a target after `new_basis`."""
        if target.gap is not None and not math.isnan(overlap):
            target.gap.refreshed(overlap)

    def _is_due(self, target: Target, updates: int) -> bool:
        if target.gap is not None:
            return target.gap.wait == 0
        return is_due(self.config, target.index, len(self.targets), updates)

    def _initial_basis(self, matrix: Matrix) -> Tensor:
        """By the projector where it needs no gradient: until the first refresh, P has the scale of later ones."""
        random = generator(self.seed, "basis", matrix.name)
        drawn = None if self.projector.needs_gradient else self.projector.basis(matrix, None, None, random)
        return initial_basis(matrix, random, torch.device("cpu")) if drawn is None else drawn
