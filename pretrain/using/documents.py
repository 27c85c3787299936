"""Log-likelihoods of whole documents, as lm-evaluation-harness computes them (`loglikelihood_rolling`)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.errors import UserError
from model.transformer import Transformer
from pretrain.data.dataset import IGNORE
from pretrain.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Likelihood:
    """Summed log-likelihood of one document in nats (natural logarithm), over `tokens` tokens of `bytes` bytes."""

    loglikelihood: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return -self.loglikelihood / math.log(2) / self.bytes


@torch.no_grad()
def document_likelihood(model: Transformer, tokenizer: Tokenizer, text: str, device: torch.device) -> Likelihood:
    """The likelihood of `text` (not empty) behind the marker that documents begin with, bos or else eos.

    The marker is what the first token follows; it is not predicted itself, nor is an end of the document. A document
    beyond the model's max_seq_len is read in windows, in which every token is predicted once.
    """
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if first is None:
        raise UserError(
            f"the model's {tokenizer.file_name} has neither bos nor eos, so a document's first token follows nothing; "
            "leave --text out to evaluate held-out text"
        )
    ids = tokenizer.encode(text)
    nll = 0.0
    for tokens, targets in _windows([first, *ids], model.config.max_seq_len):
        nll += model(torch.tensor([tokens], device=device), torch.tensor([targets], device=device)).item()
    return Likelihood(-nll, len(ids), len(text.encode()))


def _windows(ids: list[int], longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets of the windows over `ids`, whose first one is given; the last window reaches back."""
    for begin in range(0, len(ids) - 1, longest):
        end = min(begin + longest, len(ids) - 1)
        start = max(0, end - longest)
        yield ids[start:end], [IGNORE] * (begin - start) + ids[begin + 1 : end + 1]
