"""A model out of a checkpoint, for evaluation, sampling and export."""

import torch

from model.linear.support.base import check_supports
from model.transformer import Transformer
from pretrain.checkpoint.manifest import reading
from pretrain.checkpoint.read import Checkpoint
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.kernel_choices import apply, can_follow
from pretrain.loop.build import build


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(checkpoint: Checkpoint, device: torch.device, compute_dtype: torch.dtype | None = None) -> Transformer:
    """The checkpoint's model on `device`; computes as the run did unless `compute_dtype` says otherwise."""
    model = build(checkpoint.stage.config, device, compute_dtype)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(checkpoint.read(f"model.{name}"))
    check_supports(model)
    if compute_dtype is None and can_follow(checkpoint.state.kernels, device):
        apply(model, checkpoint.state.kernels)
    return model.eval()


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer the run was trained with; a checkpoint carries its own copy."""
    with reading(checkpoint.folder):
        return Tokenizer(checkpoint.folder / "tokenizer.model")
