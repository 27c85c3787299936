"""A model of which one part at a time is in memory: its embedding, one of its blocks, its last norm or its head.

What takes a whole model elsewhere (its merge into dense weights, its logits, its held-out loss) needs no more here, so
that a model is exported and checked on a machine that could not hold it.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from model.build import shape_of_model
from model.config import ModelConfig
from model.hf.merged import WeightOf, merged_weight
from model.linear.dense import Dense
from model.linear.support.base import check_supports
from model.rope import rotary_tables
from model.transformer import Transformer
from pretrain.checkpoint.read import Checkpoint
from pretrain.loop.build import stored_in


class Parts:
    """The parts of the model that `shape` describes without memory; `read` gives its tensors by name.

    Everything is computed in fp32, on the CPU.
    """

    def __init__(self, shape: Transformer, read: Callable[[str], Tensor]):
        self.config: ModelConfig = shape.config
        self._shape = shape.eval()
        self._read = read

    @torch.no_grad()
    def __call__(self, name: str) -> nn.Module:
        """The module `name` with its values, in memory for as long as the caller keeps it."""
        module = copy.deepcopy(self._shape.get_submodule(name)).to_empty(device="cpu")
        for own, tensor in module.state_dict().items():
            tensor.copy_(self._read(f"{name}.{own}"))
        check_supports(module)
        return module

    def weight(self, name: str) -> Tensor:
        """The dense weight `name`, as `model.hf.merged.WeightOf`."""
        return merged_weight(self(name.removesuffix(".weight")))

    @torch.no_grad()
    def forward(self, *inputs: tuple[Tensor, Tensor | None]) -> list[Tensor]:
        """What `Transformer.forward` gives of each (tokens, targets), every block being read once for all of them."""
        config, embedding = self.config, self("tok_embeddings")
        hidden = [embedding(tokens).float() for tokens, _ in inputs]
        longest = max(tokens.shape[1] for tokens, _ in inputs)
        rope = rotary_tables(config, longest, torch.device("cpu"), torch.float32)
        tied = embedding.weight if config.tie_embeddings else None
        del embedding
        for i in range(config.n_layers):
            block = self(f"layers.{i}")
            hidden = [block(x, rope[:, : x.shape[1]]) for x in hidden]
            del block  # or the next one would be made beside it
        norm, head = self("norm"), self("lm_head")
        return [head(norm(x), targets, tied) for x, (_, targets) in zip(hidden, inputs, strict=True)]


def trained_parts(checkpoint: Checkpoint) -> Parts:
    """The parts of a checkpoint's model, as it was trained, read from its files."""
    config = checkpoint.stage.config
    shape = shape_of_model(config.model, config.linear, int8=config.optimizer.weights == "int8")
    return Parts(shape.to(stored_in(config)), lambda name: checkpoint.read(f"model.{name}"))


def dense_parts(config: ModelConfig, weight_of: WeightOf) -> Parts:
    """The parts of a dense model with the weights that `weight_of` gives."""
    return Parts(shape_of_model(config, Dense.Config()), weight_of)


def in_turn(tensors: Iterator[tuple[str, Tensor]]) -> WeightOf:
    """The tensors of an iterator by name; one that is asked for out of turn keeps those before it in memory."""
    passed: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        while name not in passed:
            key, tensor = next(tensors)
            passed[key] = tensor
        return passed.pop(name)

    return read
