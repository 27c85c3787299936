"""Held-out loss: token-weighted over the whole split or its beginning, the same for every number of processes."""

import math
from dataclasses import dataclass, field

import torch

from model.transformer import Transformer
from pretrain.data.dataset import IGNORE, Batch, TokenDataset
from pretrain.data.mixture import MixtureDataset
from pretrain.data.open import Dataset
from pretrain.engine.kernel_choices import weights_kept
from pretrain.machine import stop
from pretrain.machine.distributed import World, gather_outcomes, sum_over_ranks
from pretrain.machine.fault import fault_point


@dataclass(frozen=True)
class Evaluation:
    """Summed negative log-likelihood in nats, over `targets` tokens that spell `bytes` bytes of UTF-8 text.

    `bytes` is 0 where nobody knows them: the corpus has no tokenizer.
    """

    nll: float
    targets: int
    bytes: int
    sources: "dict[str, Evaluation]" = field(default_factory=dict)
    """Each corpus of a mixture by itself; the sums above are then those of so many targets in the mixture's shares."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.targets

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """A figure independent of the tokenizer: every nat counts, end-of-document tokens included."""
        return self.nll / math.log(2) / self.bytes if self.bytes else None

    def figures(self) -> dict[str, float]:
        """Loss, perplexity and bits per byte by their tags in metrics.jsonl; for a mixture, of each corpus too."""
        found = {"val/loss": self.loss, "val/ppl": self.perplexity}
        if self.bits_per_byte is not None:
            found["val/bits_per_byte"] = self.bits_per_byte
        for name, source in self.sources.items():
            found |= {f"val/{name}/{tag.removeprefix('val/')}": value for tag, value in source.figures().items()}
        return found

    def __str__(self) -> str:
        line = f"held-out loss {self.loss:.4f}  perplexity {self.perplexity:.2f}"
        if self.bits_per_byte is not None:
            line += f"  bits per byte {self.bits_per_byte:.4f}"
        parts = ", ".join(f"{name} {source.loss:.4f}" for name, source in self.sources.items())
        return f"{line}  (loss of {parts})" if parts else line


def evaluate(
    model: Transformer, dataset: Dataset, world: World, micro_batch_size: int, max_tokens: int | None
) -> Evaluation | None:
    """About `max_tokens` tokens spread evenly over a held-out split, or (None) all of it. None when told to stop.

    For a mixture they are divided by its shares, and the loss is the mean of its corpora's by these.
    """
    if not isinstance(dataset, MixtureDataset):
        return _evaluate(model, dataset, world, micro_batch_size, max_tokens)
    found: dict[str, Evaluation] = {}
    for name, source in dataset.sources.items():
        limit = None if max_tokens is None else math.ceil(max_tokens * dataset.shares[name])
        one = _evaluate(model, source, world, micro_batch_size, limit)
        if one is None:
            return None
        found[name] = one
    return _mixed(found, dataset.shares)


def _mixed(found: dict[str, Evaluation], shares: dict[str, float]) -> Evaluation:
    """What as many targets as were evaluated would come to if each corpus had its share of them."""
    targets = sum(one.targets for one in found.values())
    nll = sum(shares[name] * one.loss for name, one in found.items()) * targets
    n_bytes = sum(shares[name] * one.bytes / one.targets for name, one in found.items()) * targets
    return Evaluation(nll, targets, round(n_bytes), found)


@torch.no_grad()
def _evaluate(
    model: Transformer, dataset: TokenDataset, world: World, micro_batch_size: int, max_tokens: int | None
) -> Evaluation | None:
    """One corpus.

    Every rank makes the same number of forward passes (ZeRO-3 gathers weights in each), the last ones on empty rows. A
    rank that fails tells the others at the next exchange, and all raise its error.
    """
    starts = first_rows(dataset, micro_batch_size, max_tokens)
    nll, targets, n_bytes = 0.0, 0, 0
    failure: Exception | None = None
    stopped = False
    was_training = model.training
    model.eval()
    try:
        with weights_kept(model):
            for turn, first in enumerate(range(0, len(starts), world.size)):
                fault_point("evaluation")
                stopped = stop.due()
                if stopped or (turn % 8 == 0 and sum_over_ranks(world, failure is not None)[0]):
                    break
                if failure is None:
                    try:
                        batch, spelled = _micro_batch(dataset, starts, first + world.rank, micro_batch_size)
                        nll += model(batch.tokens.to(world.device), batch.targets.to(world.device)).item()
                        targets += int((batch.targets != IGNORE).sum())
                        n_bytes += spelled
                    except Exception as error:
                        failure = error
    finally:
        model.train(was_training)
    gather_outcomes(world, None, failure)
    if stopped:
        return None
    nll, total_targets, total_bytes = sum_over_ranks(world, nll, targets, n_bytes)
    return Evaluation(nll, int(total_targets), int(total_bytes))


def first_rows(dataset: Dataset, size: int, max_tokens: int | None) -> list[int]:
    """First rows of micro-batches of `size` rows: side by side when they cover the split, else with equal gaps."""
    rows = dataset.n_samples
    if max_tokens is None or max_tokens + size * dataset.seq_len > rows * dataset.seq_len:
        return list(range(0, rows, size))
    batches = -(-max_tokens // (size * dataset.seq_len))
    return [index * rows // batches for index in range(batches)]


def _micro_batch(dataset: TokenDataset, starts: list[int], index: int, size: int) -> tuple[Batch, int]:
    """Micro-batch `index` and the bytes of text that its targets spell; past the last one a row without targets."""
    if index >= len(starts):
        batch = dataset.batch(0, 1)
        return Batch(batch.tokens, torch.full_like(batch.targets, IGNORE)), 0
    rows = min(size, dataset.n_samples - starts[index])  # the split may end before
    return dataset.batch(starts[index], rows), dataset.target_bytes(starts[index], rows)
