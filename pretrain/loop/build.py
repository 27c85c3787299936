"""The model that a configuration describes, the same for training, evaluation and benchmarks."""

import torch

from kernels import backend
from model.build import build_model
from model.errors import UserError
from model.transformer import Transformer
from pretrain.config.schema import Config


def build(config: Config, device: torch.device, compute_dtype: torch.dtype | None = None) -> Transformer:
    """The model of `config` with its initial weights on `device`; computes in `train.dtype` or in `compute_dtype`.

    `train.dtype` must be resolved ("bf16" or "fp32") where `compute_dtype` is not given.
    """
    backend.configure(config.kernels.backend)
    try:
        backend.uses_triton(torch.empty(0, device=device))
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    if compute_dtype is None:
        assert config.train.dtype != "auto"
        compute_dtype = torch.bfloat16 if config.train.dtype == "bf16" else torch.float32
    weights = config.optimizer.weights
    half = weights.startswith("bf16") or (weights == "int8" and config.train.dtype == "bf16")
    return build_model(
        config.model,
        config.linear,
        seed=config.run.seed,
        device=device,
        param_dtype=torch.bfloat16 if half else torch.float32,
        compute_dtype=compute_dtype,
        checkpoint_every=config.train.checkpoint_every_layers,
        int8=weights == "int8",
    )
