"""A contestant of `bench train`: `sparlow` or `peer-<precision>-<stock|tuned>`, a configuration and overrides.

One unit of work is one optimizer step on one micro-batch of random tokens.
"""

import sys
from collections.abc import Callable

import torch

from pretrain.bench.slices import serve
from pretrain.config import load_config
from pretrain.config.schema import Config
from pretrain.machine import distributed, memory
from pretrain.machine.distributed import World


def sparlow_step(config: Config, world: World) -> Callable[[], object]:
    """Sparlow's own step, engine and all."""
    from pretrain.data.dataset import Batch
    from pretrain.engine.build import build_engine
    from pretrain.engine.kernel_choices import apply, decide
    from pretrain.loop.build import build, eight_bit
    from pretrain.loop.resume import resolve_dtype

    memory.keep_freed_memory()
    config = resolve_dtype(config, world.device, None)
    model = build(config, world.device, how=eight_bit(config, world.device))
    apply(model, decide(model, config, {}, 1, world.device))
    engine = build_engine(model, config, world, 1)
    tokens = _tokens(config)
    batch = Batch(tokens, tokens)
    n_targets = tokens.numel()

    def step() -> None:
        engine.begin(1e-3)
        engine.micro_step(batch, n_targets)
        engine.update()

    return step


def peer_step(config: Config, precision: str) -> Callable[[], object]:
    """A plain training step of transformers' LLaMA (dense), as its users write it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = config.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: torch.nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.dim,
            intermediate_size=shape.ffn_dim,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_width,
            max_position_embeddings=shape.max_seq_len,
            use_cache=False,
        )
    )
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = _tokens(config).to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # both sides log their loss

    return step


def _tokens(config: Config) -> torch.Tensor:
    shape = (config.train.micro_batch_size, config.train.seq_len)
    return torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def main() -> None:
    kind, path, *overrides = sys.argv[1:]
    config = load_config(path, overrides)
    if kind == "sparlow":
        with distributed.processes() as world:
            serve(sparlow_step(config, world))
        return
    _, precision, setting = kind.split("-")
    if setting == "tuned":
        memory.keep_freed_memory()
    serve(peer_step(config, precision))


if __name__ == "__main__":
    main()
