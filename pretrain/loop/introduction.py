"""What a run says of itself before its first step."""

from kernels.measured import device_name
from pretrain.engine.kernel_choices import describe
from pretrain.growth.describe import describe_stages
from pretrain.loop.about import write_about
from pretrain.loop.origin import describe as describe_origin
from pretrain.loop.run import Run
from pretrain.loop.summary import versions_line
from pretrain.machine.memory import readable
from pretrain.memory_plan.run import planned_bytes
from pretrain.plan import flops_per_update


def introduce(run: Run, whole: bool) -> None:
    """Say how the stage's model computes, and in how much memory; before that, where `whole`, the run itself."""
    if whole:
        _introduce_run(run)
    for line in describe(run.state.kernels):
        run.console.say(line)
    if run.world.is_main:
        write_about(run)
    planned = planned_bytes(run.stage, run.state, run.world)
    copied = f"; {readable(run.saver.copied, binary=True)} for copies of checkpoints" if run.saver.copied else ""
    run.console.say(f"planned peak of tensors in a process: {readable(planned, binary=True)}{copied}")


def _introduce_run(run: Run) -> None:
    """Versions, device, the token arithmetic and where the run stands, once."""
    config, world, train, say = run.config, run.world, run.config.train, run.console.say
    per_update = round(train.global_batch_size * run.dataset.tokens_per_row)
    say(versions_line())
    offload = ", optimizer state in host memory" if config.parallel.offload == "optimizer" else ""
    how = train.dtype + _products(run)
    say(f"{world.size} x {device_name(world.device)}, {how}, ZeRO stage {config.parallel.zero_stage}{offload}")
    say(_token_arithmetic(run))
    if getattr(config.optimizer, "update", "step") == "per_layer":
        say(
            f'WARNING: updates on {per_update:,} tokens each, as optimizer.update = "per_layer" accumulates nothing: '
            "a learning rate found with larger updates is too high"
        )
    # As if all stages computed as the one that trains has chosen to.
    updates = [(s.end - s.start, s.config) for s in config.stages]
    flops = [n * flops_per_update(model, "executed", run.state.kernels, world.size) for n, model in updates]
    for line in describe_stages(config, flops):
        say(line)
    if run.held_out.bytes_note:
        say(run.held_out.bytes_note)
    if run.dataset.tokenizer is None and run.config.eval.prompts:
        say(f"eval.prompts: {run.config.data.path} has no tokenizer, so no samples are made")
    if run.state.origin and not run.state.step:
        say(f"begins with {describe_origin(run.state.origin)}")
    if run.state.grown and not run.state.step:
        say(f"beginning with a grown model ({run.state.tokens_seen:,} tokens seen)")
    if run.state.step:
        say(f"resuming {run.dir} at step {run.state.step} ({run.state.tokens_seen:,} tokens seen)")


def _products(run: Run) -> str:
    """What of the linears is multiplied in eight bits; nothing where none of it is."""
    train = run.config.train
    if train.products == "bf16":
        return ""
    too = ", weights' gradients too" if train.eight_bit_weight_gradients else ""
    emulated = ", emulated, so slow" if train.products == "fp8" and run.world.device.type != "cuda" else ""
    return f" with {train.products} products{too}{emulated}"


def _token_arithmetic(run: Run) -> str:
    """How many tokens make an update, and the run; averages where a row holds one document, whatever its length."""
    config, train, rows = run.config, run.config.train, run.config.train.global_batch_size
    steps, mean = config.schedule.total_steps, run.dataset.tokens_per_row
    micro_steps, tokens = run.engine.micro_batches // run.world.size, round(rows * mean * steps)
    parts = f"x {micro_steps} micro-steps x {run.world.size} processes"
    whole = f"{tokens:,} tokens, {run.dataset.epochs(rows * steps)}"
    if config.data.packing == "document":
        return (
            f"{train.micro_batch_size} rows of up to {train.seq_len} tokens {parts} = {rows:,} rows per update, of "
            f"{rows * mean:,.1f} tokens on average (padding not counted); x {steps:,} updates = about {whole}"
        )
    return (
        f"{train.micro_batch_size} sequences x {train.seq_len} tokens {parts} = {rows * train.seq_len:,} tokens per "
        f"update; x {steps:,} updates = {whole}"
    )
