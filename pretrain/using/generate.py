"""Text from a model: sampling token by token."""

from collections.abc import Callable

import torch
from torch import Tensor

from model.errors import UserError
from model.kv_cache import KVCache
from model.seeding import generator
from model.transformer import Transformer
from pretrain.data.tokenizer import Tokenizer
from pretrain.machine import stop
from pretrain.machine.distributed import World, of_main
from pretrain.machine.fault import fault_point
from pretrain.using.decoding import decoding


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    tokens: int,
    seed: int,
    world: World,
    temperature: float = 0.8,
    top_k: int = 50,
) -> str:
    """`prompt` and up to `tokens` more tokens, ending early at the end-of-document token or when told to stop.

    temperature 0 takes the likeliest token; otherwise one of the `top_k` likeliest is drawn, from (seed, prompt) alone.
    The model may have more ids than the tokenizer, as a padded one does; those stand for nothing and are never drawn.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = begin + tokenizer.encode(prompt) or [tokenizer.eos_id or 0]
    draws = generator(seed, "generate", prompt)

    def draw(logits: Tensor) -> int:
        return _draw(logits[: tokenizer.vocab_size], temperature, top_k, draws)

    ids += continue_ids(model, ids, tokens, tokenizer.eos_id, draw, world)
    return tokenizer.decode(ids[len(begin) :])


@torch.no_grad()
def continue_ids(
    model: Transformer, ids: list[int], tokens: int, end: int | None, draw: Callable[[Tensor], int], world: World
) -> list[int]:
    """Up to `tokens` ids after `ids`, each drawn by `draw` from logits [V]; ends early before `end` or when told to.

    All ranks of `world` take part, and follow rank 0's choice: at ZeRO-3 one that ended alone would leave the others
    waiting.

    Keys and values of what is there are kept (model/kv_cache), so an id costs a forward pass of one token. Beyond the
    model's max_seq_len it sees the last max_seq_len tokens alone, at positions counted from the first of these, and an
    id costs a pass of that whole window: every token in it would have seen the one that has left.
    """
    text, longest = list(ids), model.config.max_seq_len
    cache = KVCache(model.config, 1, min(longest, len(ids) + tokens), model.compute_dtype, world.device)

    def draw_next() -> int:
        if len(text) > longest:
            cache.clear()
        new = text[-longest:][cache.position :]
        logits = model(torch.tensor([new], device=world.device), None, cache)[0, -1]
        return draw(logits) if world.is_main else -1

    was_training = model.training
    model.eval()
    try:
        with decoding(model):
            for _ in range(tokens):
                fault_point("sample")
                if stop.due():
                    break
                drawn = of_main(world, draw_next)
                if drawn == end:
                    break
                text.append(drawn)
    finally:
        model.train(was_training)
    return text[len(ids) :]


def _draw(logits: Tensor, temperature: float, top_k: int, draws: torch.Generator) -> int:
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are no use; take an earlier checkpoint")
    if temperature == 0:
        return int(logits.argmax())
    best, tokens = logits.float().cpu().topk(min(top_k, logits.numel()))
    chosen = torch.multinomial((best / temperature).softmax(-1), 1, generator=draws)
    return int(tokens[chosen])
