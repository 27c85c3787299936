"""Held-out loss: token-weighted over the whole split or its beginning, the same for every number of processes."""

import math
from dataclasses import dataclass

import torch

from model.transformer import Transformer
from pretrain import stop
from pretrain.data.dataset import IGNORE, Batch, TokenDataset
from pretrain.distributed import World, sum_over_ranks


@dataclass(frozen=True)
class Evaluation:
    """Summed negative log-likelihood in nats, over `targets` tokens that spell `bytes` bytes of UTF-8 text."""

    nll: float
    targets: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.targets

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: every nat counts, end-of-document tokens included."""
        return self.nll / math.log(2) / self.bytes

    def __str__(self) -> str:
        return (
            f"held-out loss {self.loss:.4f}  perplexity {self.perplexity:.2f}  bits per byte {self.bits_per_byte:.4f}"
        )


@torch.no_grad()
def evaluate(
    model: Transformer, dataset: TokenDataset, world: World, micro_batch_size: int, max_tokens: int | None
) -> Evaluation | None:
    """The first `max_tokens` (None: all) tokens of a held-out split, in natural order. None when told to stop.

    Every rank makes the same number of forward passes (ZeRO-3 gathers weights in each), the last ones on empty rows.
    """
    samples = dataset.n_samples
    if max_tokens is not None:
        samples = min(samples, -(-max_tokens // dataset.seq_len))
    batches = -(-samples // micro_batch_size)
    nll, targets, n_bytes = 0.0, 0, 0
    was_training = model.training
    model.eval()
    for turn, round_start in enumerate(range(0, batches, world.size)):
        if turn % 8 == 0 and stop.agreed(world):
            return None
        batch = _share(dataset, round_start + world.rank, micro_batch_size, samples)
        nll += model(batch.tokens.to(world.device), batch.targets.to(world.device)).item()
        targets += int((batch.targets != IGNORE).sum())
        n_bytes += dataset.target_bytes(batch.targets)
    model.train(was_training)
    nll, total_targets, total_bytes = sum_over_ranks(world, nll, targets, n_bytes)
    return Evaluation(nll, int(total_targets), int(total_bytes))


def _share(dataset: TokenDataset, index: int, size: int, samples: int) -> Batch:
    """Micro-batch `index`; rows past the last sample repeat an earlier one with nothing to predict."""
    start = min(index * size, samples - 1)
    real = max(0, min(size, samples - index * size))
    batch = dataset.batch(start, max(real, 1))
    if real == 0:
        batch = Batch(batch.tokens, torch.full_like(batch.targets, IGNORE))
    return batch
