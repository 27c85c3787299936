"""A small linear of every kind, for tests of what all of them do."""

import torch

from model.linear import LINEARS, build_linear

IN, OUT = 23, 37
SIZES = {"poet": (24, 36)}
"""(in, out) of kinds that do not fit these."""

CONFIGS = {
    "dense": {},
    "low_rank": {"rank": 5, "alpha": 10.0},
    "sparse_low_rank": {"rank": 5, "alpha": 10.0, "density": 0.1},
    "sparse": {"density": 0.3},
    "cola": {"rank": 5},
    "lora": {"rank": 5, "alpha": 10.0},
    "lora_fa": {"rank": 5, "alpha": 10.0},
    "relora": {"rank": 5, "alpha": 10.0},
    "poet": {"block": 12, "scale": 0.02},
    "sst": {"rank": 5, "resample_every": 3},
}
"""Every member with settings that fit the small matrices here; a new member needs its line."""


def size_of(kind):
    """(in, out)."""
    return SIZES.get(kind, (IN, OUT))


def config_of(kind, **changes):
    return LINEARS[kind].Config(**{**CONFIGS[kind], **changes})


def make(kind, seed=0, name="layers.0.attention.q_proj", random_factors=True):
    linear = build_linear(config_of(kind), *size_of(kind), name)
    linear.reset_parameters(seed)
    if random_factors:  # factors that start at zero would hide mistakes
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return linear


def inputs(kind, *batch):
    """Drawn ones for it, (*batch, in)."""
    return torch.randn(*batch, size_of(kind)[0], generator=torch.Generator().manual_seed(0))


def small_config(kind):
    """One for small models whose sides are multiples of 8."""
    fields, settings = LINEARS[kind].Config.model_fields, {"rank": 4, "density": 0.1, "block": 8}
    return LINEARS[kind].Config(**{key: value for key, value in settings.items() if key in fields})
