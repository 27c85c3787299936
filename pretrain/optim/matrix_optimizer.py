"""The GaLore family as one optimizer: projector x moments x rule x weights, whole matrices shared out over ranks.

Adam keeps two numbers for each weight. Gradients of a linear are nearly of low rank, so GaLore keeps Adam's moments of
a projection alone: with a basis P (m, r) that is found anew every few hundred steps,

    R = P^T G (r, n),   N = Adam's direction of R,   W <- W - lr scale P N.

All relatives have this shape: something finds a basis (a projector, or the rule itself), something keeps moments (fp32,
bf16, 8 bits, Adafactor's), a rule turns G or R into a step, and weights take it in their own precision. Each of the
four is chosen by itself, and a published method is a preset of choices.

The rule's work is cut in two, because whole matrices are shared out over the ranks: the owner of a matrix, who alone
has its moments, makes a small message of the gradient (`direct`); every rank applies the message to its copy of the
weight (`apply`). What travels is then of rank r where the method allows it.

What is subtle. A `projected` rule never needs whole gradients but at a refresh: a hook projects each as soon as the
backward pass has made it and frees it, and refreshes are spread over the steps, so that one whole gradient is alive at
a time. Nothing may change when any gradient is not finite, no basis either, so the norm is known before the first new
basis; a matrix that is due counts by its old one there. With update = "per_layer" weights change inside of the backward
pass, and that order is given up: from the first gradient on that is not finite the rest stays as it is. Everything
random is drawn from (seed, name, step): that is what makes a resume, and another number of ranks, the same run.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from model.linear.int8 import Int8Linear
from pretrain.optim.config import MatrixConfig
from pretrain.optim.element import Element
from pretrain.optim.exchange import BUCKET_BYTES, Exchange
from pretrain.optim.matrix import Matrix
from pretrain.optim.own_optimizer import OwnOptimizer, entries, norms_of, scaled
from pretrain.optim.projector import is_late
from pretrain.optim.refresher import Refresher
from pretrain.optim.rules import PRESETS
from pretrain.optim.rules.base import State, Step, WeightUpdate, project
from pretrain.optim.target import Accumulator, Target
from pretrain.optim.weight import FloatWeight, Int8Weight, Weight


class MatrixOptimizer(OwnOptimizer):
    """Steps the matrices of `targets` (by parameter name) with config's rule, all else with AdamW or as the rule says.

    A target is one of `named_parameters`, or the codes of one of `int8_linears` (by the name that its weight would have
    as a parameter). For a `projected` rule a hook projects each gradient as soon as the backward pass has made it and
    frees it, so that whole gradients do not coexist, and ranks reduce projected ones; `grad_norm` is then of these.
    `products` is the dtype of products of whole matrices.
    """

    counts = ("updates", "kept_bases", "refreshes")
    config: MatrixConfig

    def __init__(
        self,
        named_parameters: list[tuple[str, nn.Parameter]],
        targets: dict[str, Matrix],
        config: MatrixConfig,
        seed: int,
        grad_clip: float = 0.0,
        products: torch.dtype = torch.float32,
        exchange: Exchange | None = None,
        int8_linears: Mapping[str, Int8Linear] | None = None,
    ):
        self.products = products
        self.rule = PRESETS[config.name](config)
        self.kept_bases = 0
        """Refreshes so far that a zero or non-finite gradient prevented."""
        self.refreshes = 0
        """Bases so far that were replaced."""
        self._overlap, self._compared = 0.0, 0
        self.most_full_gradients = 0
        """Largest number of whole gradients of targets that were alive at once during the last step."""
        self._most_full_gradients = self._stepped = 0
        self._holding: set[str] = set()
        weights: dict[str, Weight] = {
            name: FloatWeight(parameter) for name, parameter in named_parameters if name in targets
        }
        weights |= {name: Int8Weight(linear) for name, linear in (int8_linears or {}).items()}
        self.targets = [
            Target(name, weights[name], matrix, i, Accumulator(config.accumulators == "host"))
            for i, (name, matrix) in enumerate(targets.items())
        ]
        self.planned_matrices = len(self.targets)
        if self.rule.needs == "projected":
            self.norm_name = "grad_norm_projected"
        super().__init__(named_parameters, config, seed, grad_clip, exchange, apart=targets)
        self.refresher = Refresher(config, self.rule, self.targets, seed, self.exchange)
        if config.update == "per_layer":
            self._hook_targets(self._step_target_now)
        elif self.rule.needs == "projected":
            self._hook_targets(self._project)

    def begin(self, step: int, total_steps: int) -> None:
        self.refresher.late = is_late(self.config, step, total_steps)

    def clear(self) -> None:
        """Let go of all gradients: the step is over."""
        super().clear()
        self._holding.clear()
        for target in self.targets:
            target.sum.clear()
            target.weight.grad = None
        self.refresher.end_step(self.applied or self.partly_applied)
        self.low_rank_matrices, self._stepped = self._stepped, 0
        self.most_full_gradients, self._most_full_gradients = self._most_full_gradients, 0

    def unhook(self) -> None:
        super().unhook()
        for target in self.targets:
            target.weight.unhook()

    def tensors(self) -> Iterator[tuple[str, int, Tensor, Callable[[Tensor], None]]]:
        for target in self.targets:
            if target.basis is not None:
                yield from entries(target.name, -1, target.basis.tensors, target.basis.tensors)
            if target.gap is not None:
                yield f"{target.name}.refresh", -1, target.gap.tensor(), target.gap.load
            yield from entries(target.name, -1, target.shared, target.shared)
            like = target.state or self.rule.init_state(target.matrix, torch.device("meta"))
            yield from entries(target.name, target.owner, like, target.state)
        yield from super().tensors()

    def full_gradient_bytes(self) -> int:
        """Bytes of the matrices' gradients if they were not projected."""
        return sum(math.prod(target.matrix.shape) for target in self.targets) * self.exchange.wire.itemsize

    def figures(self) -> dict[str, float]:
        """What is logged of a step; the overlap is the mean over the bases replaced since this was last asked."""
        overlap = {"optimizer/refresh_overlap": self._overlap / self._compared} if self._compared else {}
        self._overlap, self._compared = 0.0, 0
        return overlap | {
            "train/refreshes": self.refreshes,
            "train/kept_bases": self.kept_bases,
            "comm/reduced_bytes": self.exchange.reduced_bytes,
        }

    def _element(self, name: str, parameter: nn.Parameter) -> Element:
        return self.rule.element(name, parameter)

    def _parts(self) -> list[Target | Element]:
        return [*self.targets, *self.elements]

    def _init_state(self) -> None:
        for target in self.targets:
            matrix, device = target.matrix, target.weight.device
            target.shared = self.rule.init_shared(matrix, device)
            if target.owner == self.exchange.rank:
                target.state = self.rule.init_state(matrix, device)
        super()._init_state()

    def _hook_targets(self, work: Callable[[Target], None]) -> None:
        for target in self.targets:
            target.weight.on_gradient(partial(work, target))

    @torch.no_grad()
    def _project(self, target: Target) -> None:
        """After a backward pass: keep the projected gradient alone, unless the whole is needed for a new basis.

        A linear that sums its gradient over micro-steps hands it to its factors with the last one: nothing before.
        """
        if target.weight.grad is None:
            return
        self._most_full_gradients = max(self._most_full_gradients, len(self._holding | {target.name}))
        if self._due(target):
            self._holding.add(target.name)
            return
        target.sum.add(self._projection(target, target.whole))
        target.weight.grad = None

    def _reduce(self) -> None:
        """Whole gradients of the matrices that are due, or of all, and projected ones."""
        self._reduce_elements(count=False)
        kept = [target for target in self.targets if not target.sum.empty]
        whole = [target for target in self.targets if target.sum.empty]
        if self.rule.gradient_everywhere:
            self.exchange.sum_everywhere(target.whole for target in whole)
        else:
            self.exchange.sum_to_owners((target.owner, target.whole) for target in whole)
        self._reduce_kept(kept)

    def _prepare(self) -> None:
        """Matrices that are due get their new basis between the whole gradients and the projected ones."""
        projected, whole = self.rule.needs == "projected", [target for target in self.targets if target.sum.empty]
        wholes = {target.name: target.whole for target in whole}
        due = any(target.basis is not None and self._due(target) for target in self.targets)
        if due:
            self.refresher.refresh(wholes, self.updates)
        for target in whole if projected else ():
            target.sum.write(self._projection(target, wholes.pop(target.name)))
            target.weight.grad = None
        if due:
            square = self._own_square() if projected else self._zero()
            total = self.exchange.total(torch.cat((square[None], self._refresh_counts(square)))).tolist()
            self._count_refreshes(total[1:])
            self.grad_norm = total[0] ** 0.5 if projected else self.grad_norm

    def _refresh_counts(self, like: Tensor) -> Tensor:
        """What this rank's refresher has done in this step (4,): bases kept, new, compared, and their overlaps' sum."""
        found = self.refresher
        counts = like.new_tensor((found.kept, found.refreshes, len(found.overlaps), 0))
        for overlap in found.overlaps:
            counts[3] += overlap
        return counts

    def _count_refreshes(self, counts: list[float]) -> None:
        kept, refreshes, compared, overlap = counts
        self.kept_bases += int(kept)
        self.refreshes += int(refreshes)
        self._compared += int(compared)
        self._overlap += overlap

    def _reduce_kept(self, targets: list[Target]) -> None:
        """Sums that are on the device travel together; those in host memory visit the device one by one."""
        if self.exchange.size == 1:
            return
        if self.config.accumulators == "device":
            self.exchange.sum_to_owners((target.owner, target.sum.read()) for target in targets)
            return
        for target in targets:
            R = target.sum.read().clone()
            self.exchange.sum_to_owners([(target.owner, R)])
            target.sum.write(R)

    def _gradient(self, target: Target) -> Tensor:
        """R or G of the step, in left form."""
        return target.whole if self.rule.needs == "full" else target.sum.read()

    def _own_norms(self) -> list[Tensor]:
        targets = [target for target in self.targets if target.owner == self.exchange.rank]
        projected = self.rule.needs == "projected"
        due = [target for target in targets if projected and target.sum.empty]
        ready = [target for target in targets if not (projected and target.sum.empty)]
        if self.config.accumulators == "host":  # one at a time
            norms = [norm for target in ready for norm in norms_of([self._gradient(target)])]
        else:
            norms = norms_of([self._gradient(target) for target in ready])
        # By the old basis: it shows whatever is not finite, and what is only asked leaves no trace.
        norms += [norm for target in due for norm in norms_of([self._projection(target, target.whole)])]
        return norms + super()._own_norms()

    def _apply(self, clip: float) -> None:
        for group in self._groups():
            self._apply_group(group, clip)
        super()._apply(clip)

    def _groups(self) -> Iterator[list[Target]]:
        """Targets whose messages exist at once: as many as fill a bucket for each rank."""
        group: list[Target] = []
        size = 0
        for target in self.targets:
            group.append(target)
            size += sum(part.nbytes for part in self._empty_message(target, torch.device("meta")).values())
            if self.exchange.size == 1 or size >= BUCKET_BYTES * self.exchange.size:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _apply_group(self, targets: list[Target], clip: float) -> None:
        lr, rank, everywhere = self.param_groups[0]["lr"], self.exchange.rank, self.rule.gradient_everywhere
        gradients: dict[str, Tensor] = {}
        messages: dict[str, State] = {}
        for target in targets:
            if everywhere or target.owner == rank:
                gradients[target.name] = self._steered(target, scaled(self._gradient(target).float(), clip))
            if target.owner == rank:
                messages[target.name] = self._message(target, gradients[target.name], lr)
            else:
                messages[target.name] = self._empty_message(target, target.weight.device)
        self.exchange.send((t.owner, part) for t in targets for _, part in sorted(messages[t.name].items()))
        for target in targets:
            gradient = gradients.pop(target.name, None)
            self._change(target, gradient if everywhere else None, messages.pop(target.name), lr)

    def _message(self, target: Target, gradient: Tensor, lr: float) -> State:
        step = self._step(target, lr)
        message = self.rule.direct(target.matrix, target.state, target.P, gradient, step)
        return {name: part.to(self._wire(name)).contiguous() for name, part in message.items()}

    def _empty_message(self, target: Target, device: torch.device) -> State:
        shapes = self.rule.message_shapes(target.matrix)
        return {name: torch.empty(shape, dtype=self._wire(name), device=device) for name, shape in shapes.items()}

    def _wire(self, name: str) -> torch.dtype:
        """R and N travel in the precision in which they are multiplied; all else in fp32."""
        return self.products if name in ("R", "N") else torch.float32

    def _change(self, target: Target, gradient: Tensor | None, message: State, lr: float) -> None:
        step = self._step(target, lr)
        with target.weight.changing(step.key) as (weight, key):
            step = replace(step, key=key)
            self.rule.apply(weight, WeightUpdate(target.matrix, message, target.shared, step, target.P, gradient))
        self._stepped += 1

    def _step(self, target: Target, lr: float) -> Step:
        key = self._key(target)
        own = lr * self.config.lr_ratio(target.name)
        return Step(self.updates + 1, own, self._due(target), self.products, key, target.weight.read, lr)

    @torch.no_grad()
    def _step_target_now(self, target: Target) -> None:
        """per_layer: the whole step of one matrix, inside of the backward pass."""
        if (square := self._sound(target.whole)) is not None:
            self._step_target(target, target.whole, square)
        target.weight.grad = None
        self._most_full_gradients = 1

    def _step_target(self, target: Target, G: Tensor, square: Tensor) -> None:
        lr, projected = self.param_groups[0]["lr"], self.rule.needs == "projected"
        if self.rule.uses_basis and self._due(target):
            overlap = self.refresher.new_basis(target, G, self.updates)
            self.refresher.reschedule(target, float(overlap))
        gradient = self._projection(target, G) if projected else self._steered(target, G.float())
        self._squares.append(gradient.square().sum() if projected else square)
        message = self._message(target, gradient, lr)
        self._change(target, gradient if self.rule.gradient_everywhere else None, message, lr)

    def _finish(self) -> None:
        super()._finish()
        self._count_refreshes(self._refresh_counts(self._zero()).tolist())

    def _projection(self, target: Target, G: Tensor) -> Tensor:
        P = target.P
        assert P is not None
        return project(P, G, self.products)

    def _steered(self, target: Target, gradient: Tensor) -> Tensor:
        """`_turned` of a whole gradient in left form; reading the weight may copy it."""
        if not self.config.orthograd:
            return gradient
        return self._turned(target.matrix.left_form(target.weight.read()), gradient)

    def _due(self, target: Target) -> bool:
        return self.refresher.due(target, self.updates)
