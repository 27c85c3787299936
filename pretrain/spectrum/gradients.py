"""The gradient of the loss by every linear's whole map W, on held-out text."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from model.errors import UserError
from model.linear.base import BaseLinear
from model.linear.int8 import Int8Linear
from model.transformer import Transformer
from pretrain.checkpoint.read import Checkpoint, require_same_tokenizer
from pretrain.data.dataset import Batch
from pretrain.data.open import open_dataset


def held_out(checkpoint: Checkpoint, sequences: int, path: str | None = None) -> Batch:
    """Return the first `sequences` of the held-out text of the checkpoint's run, or of the corpus at `path`.

    UserError where there are fewer, or the tokenizer is another one.
    """
    dataset = open_dataset(checkpoint.config, "val", path)
    named = f"--data {path}" if path else checkpoint.config.data.named
    require_same_tokenizer(checkpoint, dataset, named, str(checkpoint.folder))
    if sequences > dataset.n_samples:
        raise UserError(f"--gradients {sequences}: there are {dataset.n_samples} held-out sequences; ask for less")
    return dataset.batch(0, sequences)


def watch_gradients(model: Transformer, tokens: Tensor, targets: Tensor, seen: Callable[[str, Tensor], None]) -> None:
    """Call `seen` with the name of every linear and the gradient [out, in], fp32, of the mean loss by its W.

    One forward and one backward pass over tokens and targets [B, T] of the model's device. W need not exist: the
    gradient is dY^T X of what goes into the linear and what comes back. One of them is in memory at a time, and no
    parameter gets its own.
    """
    handles = [model.tok_embeddings.register_forward_hook(lambda module, given, y: y.detach().requires_grad_())]
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def on_forward(name: str, module: BaseLinear, given: Any, y: Tensor) -> None:
        x = given[0].detach().reshape(-1, module.in_features)
        y.register_hook(lambda grad: seen(name, grad.reshape(-1, module.out_features).float().t() @ x.float()))

    for name, module in model.named_modules():
        if isinstance(module, BaseLinear):
            handles.append(module.register_forward_hook(partial(on_forward, name)))
            if isinstance(module, Int8Linear):
                module.sink = lambda gradient: None
    try:
        model.requires_grad_(False)
        nll = model(tokens, targets)
        (nll / (targets >= 0).sum()).backward()
    finally:
        for parameter, train in trains.items():
            parameter.requires_grad_(train)
        for handle in handles:
            handle.remove()
