"""Skipping a step of ZeRO's by its gradient's norm, or whatever it is, before anything has changed.

From stage 1 on DeepSpeed holds gradients in shapes of its own, and takes an optimizer step in one call: reduce, find
the norm, skip where that is not finite, clip, update. So there is one place to speak up, and it is the norm: whoever
answers infinity in its place has DeepSpeed skip the step and clear its sums, as for a gradient that overflows.

What is subtle: each of its three optimizers asks another of its own methods, none of which is an interface. They are
those of 0.19.8, and one that is missing ends the run before its first step.
"""

import math
from typing import Any

import torch
from torch import Tensor

from model.errors import RunFailed
from pretrain.machine.distributed import World, shared, sum_over_ranks
from pretrain.optim.own_optimizer import norms_of

METHODS = ("scaled_global_norm", "_get_norm_groups", "get_grads_for_norm")
"""At stage 1 and 2: the norm. At stage 3: those of groups. At stage 1 in bf16: gradients of which it takes the norm."""


class NormWatch:
    """Watches the norms that `optimizer`, one of DeepSpeed's ZeRO, finds in its steps."""

    def __init__(self, optimizer: Any, world: World):
        self.world, self.limit = world, math.inf
        """Largest norm that passes; below 0 none does, and none is computed."""
        self.stopped_at = math.nan
        """The norm that did not pass, NaN where there was none."""
        self._method = next((method for method in METHODS if hasattr(optimizer, method)), "")
        if not self._method:
            missing = f"this version of DeepSpeed has none of {', '.join(METHODS)}; install deepspeed 0.19.8"
            raise shared(RunFailed(missing))
        self._find = getattr(optimizer, self._method)
        setattr(optimizer, self._method, self._watched)

    def begin(self, limit: float) -> None:
        """Before a step."""
        self.limit, self.stopped_at = limit, math.nan

    def _watched(self, for_clipping: bool = False) -> Any:
        if for_clipping:
            return self._find(for_clipping=True)
        if self.limit < 0:
            return self._infinity()
        found = self._find()
        if self.limit < math.inf:
            norm = torch.linalg.vector_norm(torch.stack(self._norms(found))).item()
            # Processors of two kinds may differ in a last digit, and one rank alone must not skip.
            norm = sum_over_ranks(self.world, norm if self.world.is_main else 0.0)[0] if self.world.size > 1 else norm
            if norm > self.limit:
                self.stopped_at = norm
                return self._infinity()
        return found

    def _norms(self, found: Any) -> list[Tensor]:
        if self._method == "get_grads_for_norm":
            return norms_of(found[0])
        parts = found if self._method == "_get_norm_groups" else [found]
        return [torch.as_tensor(part, dtype=torch.float32, device=self.world.device) for part in parts]

    def _infinity(self) -> Any:
        infinity = torch.tensor(math.inf, device=self.world.device)
        shapes = {"scaled_global_norm": infinity, "_get_norm_groups": [infinity]}
        return shapes.get(self._method, ([infinity], {}))
