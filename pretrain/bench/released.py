"""The released algorithms of GaLore's family, as peers to measure against.

Written from the descriptions (arXiv 2403.03507, 2410.01623, 2412.05270, 2408.12857): one pass after another over whole
matrices, in the dtype of the parameter, eps added to the root as it is, decay after the update.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from kernels.fira_update.reference import GROWTH

BETA1, BETA2, EPS = 0.9, 0.999, 1e-6


class Released:
    """Steps `projected` matrices by the algorithm, `others` by AdamW; pairs of (parameter, gradient)."""

    def __init__(
        self,
        projected: list[tuple[Tensor, Tensor]],
        others: list[tuple[Tensor, Tensor]],
        rank: int,
        scale: float,
        lr: float,
        weight_decay: float = 0.0,
    ):
        self.projected, self.others = projected, others
        self.rank, self.scale, self.lr, self.weight_decay = rank, scale, lr, weight_decay
        self.steps = 0
        self.state: dict[int, dict[str, Tensor]] = {}

    def step(self) -> None:
        """An ordinary step; the first one finds the bases."""
        self.steps += 1
        for W, G in self.projected:
            state = self.state.setdefault(id(W), {})
            if "P" not in state:
                state["P"] = self.find_basis(G)
            self.update(W, G, state)
            self.decay(W)
        for W, G in self.others:
            N = self.adam(self.state.setdefault(id(W), {}), G)
            W.addcdiv_(*N, value=-self.step_size())
            self.decay(W)

    def find_basis(self, G: Tensor) -> Tensor:
        """The leading singular vectors of the smaller side: (m, rank), or (rank, n) for m >= n."""
        U, _, Vh = torch.linalg.svd(G.float(), full_matrices=False)
        return (Vh[: self.rank] if G.shape[0] >= G.shape[1] else U[:, : self.rank]).to(G.dtype)

    @abstractmethod
    def update(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> None:
        """Change W by the algorithm."""

    def project(self, G: Tensor, P: Tensor) -> Tensor:
        return torch.matmul(G, P.t()) if G.shape[0] >= G.shape[1] else torch.matmul(P.t(), G)

    def back(self, N: Tensor, G: Tensor, P: Tensor) -> Tensor:
        return (torch.matmul(N, P) if G.shape[0] >= G.shape[1] else torch.matmul(P, N)) * self.scale

    def adam(self, state: dict[str, Tensor], R: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the direction."""
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(R), torch.zeros_like(R)
        state["exp_avg"].mul_(BETA1).add_(R, alpha=1 - BETA1)
        state["exp_avg_sq"].mul_(BETA2).addcmul_(R, R, value=1 - BETA2)
        return state["exp_avg"], state["exp_avg_sq"].sqrt().add_(EPS)

    def step_size(self) -> float:
        return self.lr * math.sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)

    def decay(self, W: Tensor) -> None:
        if self.weight_decay:
            W.add_(W, alpha=-self.lr * self.weight_decay)

    def limited(self, state: dict[str, Tensor], update: Tensor) -> Tensor:
        """Fira's limiter: the norm grows by 1 % from step to step at most."""
        norm = torch.norm(update)
        if "norm" in state:
            limiter = torch.clamp(norm / (state["norm"] + 1e-8), min=GROWTH) / GROWTH
            update, norm = update / limiter, norm / limiter
        state["norm"] = norm
        return update

    def channels(self, N: Tensor, R: Tensor, G: Tensor) -> Tensor:
        """How the optimizer scaled each column of the projected gradient; each row for m >= n."""
        dim = 1 if G.shape[0] >= G.shape[1] else 0
        return torch.norm(N, dim=dim, keepdim=True) / (torch.norm(R, dim=dim, keepdim=True) + 1e-8)


class GaLore(Released):
    def update(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> None:
        m, denominator = self.adam(state, self.project(G, state["P"]))
        W.add_(self.back(m / denominator, G, state["P"]), alpha=-self.step_size())


class Fira(Released):
    def update(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> None:
        R = self.project(G, state["P"])
        m, denominator = self.adam(state, R)
        N = m / denominator
        residual = (G - self.back(R, G, state["P"])) * self.channels(N, R, G)
        W.add_(self.back(N, G, state["P"]) + self.limited(state, residual), alpha=-self.step_size())


class Apollo(Released):
    """`by_channel`; else one factor per matrix (Mini)."""

    by_channel = True

    def find_basis(self, G: Tensor) -> Tensor:
        m, n = G.shape
        size = (self.rank, n) if m >= n else (m, self.rank)
        return (torch.randn(size, device=G.device) / math.sqrt(self.rank)).to(G.dtype)

    def update(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> None:
        R = self.project(G, state["P"])
        m, denominator = self.adam(state, R)
        N = m / denominator
        scaling = self.channels(N, R, G) if self.by_channel else torch.norm(N) / (torch.norm(R) + 1e-8)
        update = self.limited(state, G * scaling) * math.sqrt(self.scale)
        W.add_(update, alpha=-self.step_size())


class ApolloMini(Apollo):
    by_channel = False


class OnlineSubspace(GaLore):
    """P moves by one step of AdamW per step, on what autograd finds for |P P^T G - G|^2 of the normalised gradient."""

    def update(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> None:
        super().update(W, G, state)
        unit, right = G / torch.norm(G), G.shape[0] >= G.shape[1]
        with torch.enable_grad():
            P = state["P"].detach().requires_grad_()
            kept = unit @ P.t() @ P if right else P @ (P.t() @ unit)
            slope = torch.autograd.grad((kept - unit).square().sum(), P)[0]
        moments = self.state.setdefault(id(state), {})
        m, denominator = self.adam(moments, slope)
        state["P"] = state["P"].addcdiv(m, denominator, value=-self.step_size() / 200)


RELEASED: dict[str, type[Released]] = {
    "galore_adamw": GaLore,
    "fira": Fira,
    "apollo": Apollo,
    "apollo_mini": ApolloMini,
    "online_subspace": OnlineSubspace,
}
"""Algorithms by the name of the preset that does the same."""
