"""Small models to grow, of every linear and support, whose every tensor has values that training could have left."""

import functools
from collections.abc import Iterable

import torch
from torch import nn

from model.build import build_model, shape_of_model
from model.config import ModelConfig
from model.errors import UserError
from model.growth.tensors import GrownTensor, fitting
from model.growth.width import require_linears_widen
from model.linear import LINEARS
from model.linear.base import BaseLinear
from model.linear.support import SUPPORTS
from model.linear.support.base import check_supports
from model.transformer import Transformer

SETTINGS = {"rank": 8, "alpha": 12.0, "density": 0.34, "block": 16}


def _linears():
    for name, kind in LINEARS.items():
        fields = kind.Config.model_fields
        settings = {key: value for key, value in SETTINGS.items() if key in fields}
        for support in SUPPORTS if "support" in fields else [None]:
            chosen = {} if support is None else {"support": support}
            yield "-".join([name, *chosen.values()]), kind.Config(**settings, **chosen)


LINEAR_CONFIGS = dict(_linears())
"""Every member of LINEARS, with every support where it has one."""

SILENCEABLE = {name: linear for name, linear in LINEAR_CONFIGS.items() if LINEARS[linear.name].silent_at_zero}
"""Those that can start as the zero map."""


def shape(n_layers: int, **changes) -> ModelConfig:
    settings = {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "vocab_size": 100, "max_seq_len": 16}
    return ModelConfig(n_layers=n_layers, **{**settings, **changes})


def widens(linear, how: str = "copy") -> bool:
    """Whether growth in width, by copies or "zero", knows such linears; what it refuses it says at once."""
    try:
        require_linears_widen(shape(1), shape(1, ffn_dim=192), linear, linear, how)
    except UserError:
        return False
    return True


def empty(linear, n_layers: int, param_dtype: torch.dtype = torch.float32, **changes) -> Transformer:
    """A model to grow into: its parameters are NaN, its supports none."""
    model = shape_of_model(shape(n_layers, **changes), linear).to(param_dtype).to_empty(device="cpu").eval()
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
    return model


@functools.cache
def trained(linear, n_layers: int, param_dtype: torch.dtype = torch.float32, **changes) -> Transformer:
    """Noise in every parameter: nothing is zero or one as at the start. Shared by tests: leave it as it is."""
    model = build_model(
        shape(n_layers, **changes),
        linear,
        seed=0,
        device="cpu",
        param_dtype=param_dtype,
        compute_dtype=torch.float32,
    ).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    return model


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Iterable[GrownTensor]) -> None:
    """Fill every parameter and buffer of `model` from `tensors`, cast to its dtype; UserError unless they fit it."""
    state = model.state_dict()
    for name, tensor, *_ in fitting(tensors, state):
        state[name].copy_(tensor)
        del tensor
    check_supports(model)


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(100, (4, 17), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    return model(tokens()[:, :-1])


@torch.no_grad()
def outputs(linear: BaseLinear) -> torch.Tensor:
    """What a linear makes of the unit vectors [out, in]: its matrix, where it has one."""
    return linear(torch.eye(linear.in_features)).t()


def never_moved(model: Transformer, steps: int = 2) -> dict[str, float]:
    """The part of each parameter's elements that `steps` of AdamW leave as they were, where it is not 0."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(steps):
        batch = tokens(step)
        optimizer.zero_grad()
        model(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step()
    still = {name: (parameter == before[name]).float().mean().item() for name, parameter in model.named_parameters()}
    return {name: part for name, part in still.items() if part}
