"""The model that a configuration describes, the same for training, evaluation and benchmarks."""

import torch

from kernels import backend
from kernels.eight_bit_linear import EightBit
from kernels.row_codes.format import multiplies_fp8
from model.build import build_model
from model.errors import UserError
from model.transformer import Transformer
from pretrain.config.schema import Config


def build(
    config: Config, device: torch.device, compute_dtype: torch.dtype | None = None, how: EightBit | None = None
) -> Transformer:
    """The model of `config` with its initial weights on `device`; computes in `train.dtype` or in `compute_dtype`.

    `how`, what `eight_bit` says, is for a model that trains: all else multiplies plainly, on older GPUs too.
    `train.dtype` must be resolved ("bf16" or "fp32") where `compute_dtype` is not given.
    """
    backend.configure(config.kernels.backend)
    try:
        backend.uses_triton(torch.empty(0, device=device))
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    if compute_dtype is None:
        assert config.train.dtype != "auto"
        compute_dtype = computed_in(config)
    return build_model(
        config.model,
        config.linear,
        seed=config.run.seed,
        device=device,
        param_dtype=stored_in(config),
        compute_dtype=compute_dtype,
        checkpoint_every=config.train.checkpoint_every_layers,
        offload=config.train.offload_activations,
        int8=config.optimizer.weights == "int8",
        eight_bit=how,
    )


def eight_bit(config: Config, device: torch.device) -> EightBit | None:
    """How linears multiply in training, where that is in eight bits; UserError for a GPU that cannot."""
    train = config.train
    if train.products == "bf16":
        return None
    if train.products == "fp8" and device.type == "cuda" and not multiplies_fp8(device):
        raise UserError(
            f'train.products = "fp8" needs a GPU of Ada, Hopper or Blackwell, and {torch.cuda.get_device_name(device)} '
            'is older; set "int8" (a run that has trained in fp8 goes on so as a new one, by sparlow train --from)'
        )
    return EightBit(train.products, train.eight_bit_weight_gradients)


def computed_in(config: Config) -> torch.dtype:
    """The dtype of activations and products; bf16 where that is still open."""
    return torch.float32 if config.train.dtype == "fp32" else torch.bfloat16


def stored_in(config: Config) -> torch.dtype:
    """The dtype of the parameters as the model is built; under ZeRO, DeepSpeed casts them to `computed_in`."""
    weights = config.optimizer.weights
    half = weights.startswith("bf16") or (weights == "int8" and computed_in(config) == torch.bfloat16)
    return torch.bfloat16 if half else torch.float32
