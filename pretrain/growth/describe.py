"""Growth in words, before it happens."""

from collections.abc import Iterator, Sequence

from pretrain.config.schema import Config
from pretrain.config.stages import growth_time, model_size


def describe_stages(config: Config, flops: Sequence[float]) -> Iterator[str]:
    """A line per stage, `flops` being what each takes; none without growth.

    And a warning where the timing formula asks for more than it may have.
    """
    if not config.growth.enabled:
        return
    per_update = config.train.global_batch_size * config.train.seq_len
    most = "up to " if config.data.packing == "document" else ""
    for stage, cost in zip(config.stages, flops, strict=True):
        steps = stage.end - stage.start
        yield (
            f"stage {stage.index + 1} of {len(config.stages)}: {model_size(stage.config, config)} to step "
            f"{stage.end}, {most}{steps * per_update:,} tokens, {cost:.2e} FLOPs, "
            f"peak learning rate {stage.config.optimizer.lr:g}"
        )
    if config.growth.at == "formula":
        time = growth_time(config)
        if time.clamped:
            yield (
                f"growth.at: the formula asks for {time.formula_tokens:.3g} tokens, more than growth.max_fraction "
                f"{config.growth.max_fraction:g} of this run's; growing after {time.tokens:,}"
            )
