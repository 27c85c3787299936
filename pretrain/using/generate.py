"""Text from a model: sampling token by token."""

import torch
from torch import Tensor

from model.errors import UserError
from model.seeding import generator
from model.transformer import Transformer
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine.kernel_choices import weights_kept
from pretrain.machine import stop
from pretrain.machine.distributed import World, of_main


@torch.no_grad()
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
    All ranks of `world` take part, and follow rank 0's choice: at ZeRO-3 one that ended alone would leave the others
    waiting.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = torch.tensor([begin + tokenizer.encode(prompt)], device=world.device)
    if ids.numel() == 0:
        ids = torch.tensor([[tokenizer.eos_id or 0]], device=world.device)
    draws = generator(seed, "generate", prompt)

    def draw_next() -> int | None:
        logits = model(ids[:, -model.config.max_seq_len :])[0, -1, : tokenizer.vocab_size]
        return _draw(logits, temperature, top_k, draws) if world.is_main else None

    was_training = model.training
    model.eval()
    try:
        with weights_kept(model):
            for count in range(tokens):
                if count % 8 == 0 and stop.agreed(world):
                    break
                token = of_main(world, draw_next)
                if token == tokenizer.eos_id:
                    break
                ids = torch.cat([ids, torch.tensor([[token]], device=world.device)], dim=1)
    finally:
        model.train(was_training)
    return tokenizer.decode(ids[0, len(begin) :].tolist())


def _draw(logits: Tensor, temperature: float, top_k: int, draws: torch.Generator) -> int:
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are no use; take an earlier checkpoint")
    if temperature == 0:
        return int(logits.argmax())
    best, tokens = logits.float().cpu().topk(min(top_k, logits.numel()))
    chosen = torch.multinomial((best / temperature).softmax(-1), 1, generator=draws)
    return int(tokens[chosen])
