"""`sparlow train`: the run, from top to bottom."""

import time
from pathlib import Path

import torch

from model.build import build_model, support_checksum
from model.counts import training_flops
from model.errors import RunFailed, UserError
from pretrain import stop
from pretrain.checkpoint.read import Checkpoint
from pretrain.checkpoint.save import save_checkpoint
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.config.write import to_toml
from pretrain.console import Console
from pretrain.data.dataset import TokenDataset
from pretrain.data.tokenizer import Tokenizer
from pretrain.distributed import World, gather_outcomes, on_main, require_divisible, sum_over_ranks, together
from pretrain.engine.engine import Engine, Update
from pretrain.engine.tensors import restore, whole_tensors
from pretrain.evaluate import evaluate
from pretrain.fault import fault_point
from pretrain.generate import generate
from pretrain.hardware import device_name, peak_flops
from pretrain.memory import peak_bytes
from pretrain.metrics import Metrics, StepClock
from pretrain.optim import build_optimizer
from pretrain.preflight import require_disk_space
from pretrain.resume import require_same_run, resolve_dtype
from pretrain.state import TrainState
from pretrain.summary import versions_line, write_summary

STOPPED = 143


def train(config: Config, world: World) -> int:
    """Train to `config.last_step`, from the newest checkpoint of `run.dir` where there is one.

    Returns 0, or 143 when SIGTERM or Ctrl-C ended the run early, with a checkpoint committed.
    """
    stop.listen()
    console = Console(world.is_main)
    run_dir = Path(config.run.dir)
    dataset, held_out, tokenizer = together(world, lambda: _open_data(config))
    grad_accum_steps = require_divisible(config.train.global_batch_size, config.train.micro_batch_size, world.size)

    store = CheckpointStore(run_dir)
    newest = on_main(world, lambda: _claim(store, console))
    checkpoint = together(world, lambda: Checkpoint(newest)) if newest else None
    config = resolve_dtype(config, world.device, checkpoint)
    if checkpoint:
        require_same_run(config, dataset.fingerprint, checkpoint)
    state = checkpoint.state if checkpoint else TrainState()

    bf16 = config.train.dtype == "bf16"
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=True)
    model = build_model(
        config.model,
        config.linear,
        seed=config.run.seed,
        device=world.device,
        param_dtype=torch.bfloat16 if config.optimizer.weights == "bf16" else torch.float32,
        compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        checkpoint_every=config.train.checkpoint_every_layers,
    )
    _require_equal_supports(model, world)
    optimizer = build_optimizer(config.optimizer, model)
    engine = Engine(model, optimizer, config, world, grad_accum_steps, bf16)
    if checkpoint:
        warm_up = dataset.batch(0, config.train.micro_batch_size)
        restore(engine, checkpoint.read, state.updates, warm_up)
    on_main(world, lambda: require_disk_space(store, whole_tensors(engine), config.checkpoint.keep))
    if world.is_main:
        (run_dir / "resolved.toml").write_text(to_toml(config, comments=True), encoding="utf-8")

    _introduce(console, config, world, dataset, state, grad_accum_steps)
    if state.step >= config.last_step:
        console.say(f"nothing to do: {run_dir} is at step {state.step} of {config.last_step}; raise train.max_steps to go on")
        return 0

    flops_per_step = _flops_per_step(config)
    peak = config.metrics.peak_tflops * 1e12 or peak_flops(world.device)
    metrics = Metrics(run_dir, state.step, config.metrics.tensorboard) if world.is_main else None
    clock = StepClock()
    saved_at = state.step if checkpoint else -1
    evaluation = None
    stopping = False
    console.start_steps(state.step, config.last_step)

    while state.step < config.last_step and not stopping:
        started = time.perf_counter()
        lr = config.optimizer.lr * config.schedule.factor(state.step + 1)
        loss, update, stopping = train_step(engine, dataset, config, state, lr)
        state.flops += flops_per_step
        seconds = time.perf_counter() - started
        state.train_seconds += seconds
        clock.add(seconds)
        _count_skips(config, state, update, console)

        step, ends = state.step, state.step == config.schedule.total_steps
        figures: dict[str, float] = {}
        if step % config.metrics.every == 0 or step == 1 or ends:
            tokens_per_second = config.train.global_batch_size * config.train.seq_len / seconds
            figures = {
                "train/loss": loss,
                "train/lr": lr,
                "train/grad_norm": update.grad_norm,
                "train/tokens_seen": state.tokens_seen,
                "train/skipped_steps": state.skipped_steps,
                "perf/tokens_per_s": tokens_per_second,
                "perf/step_ms_p50": clock.percentile_ms(50),
                "perf/step_ms_p99": clock.percentile_ms(99),
                "mem/peak_gib": peak_bytes(world.device) / 2**30,
            }
            if peak:
                figures["perf/mfu"] = flops_per_step / world.size / clock.steady_seconds() / peak
        console.step(step, _line(figures) if figures else None)

        due = ends or (config.eval.every and step % config.eval.every == 0)
        if (due or step == config.last_step) and not stopping:
            limit = None if ends else config.eval.tokens
            evaluation = evaluate(engine.model, held_out, world, config.train.micro_batch_size, limit)
            stopping = stopping or evaluation is None
            if evaluation:
                console.say(
                    f"step {step:>6}  held-out loss {evaluation.loss:.4f}  perplexity {evaluation.perplexity:.2f}  "
                    f"bits per byte {evaluation.bits_per_byte:.4f}"
                )
            if evaluation and due:
                figures["val/loss"] = evaluation.loss
                figures["val/ppl"] = evaluation.perplexity
                figures["val/bits_per_byte"] = evaluation.bits_per_byte
                _samples(engine, tokenizer, config, step, console, metrics)
        if metrics and figures:
            metrics.write(step, figures)

        if step % config.checkpoint.every == 0 or step == config.last_step or stopping:
            if _save(store, world, config, state, engine, dataset, console):
                saved_at = step
            fault_point("after_save")

    console.stop_steps()
    if metrics:
        metrics.close()
        write_summary(run_dir, config, state, clock, evaluation, engine.reduced_bytes(), world)
    engine.close()
    on_main(world, store.unlock)
    if saved_at != state.step:
        raise RunFailed(f"run.dir: the last checkpoint could not be written to {store.folder}; free some disk space")
    if stopping:
        console.say(f"stopped at step {state.step} with a checkpoint; the same command goes on from here")
        return STOPPED
    return 0


def train_step(
    engine: Engine, dataset: TokenDataset, config: Config, state: TrainState, lr: float
) -> tuple[float, Update, bool]:
    """One optimizer step on the next global batch; moves `state` on by one step.

    Micro-batch k of the global batch goes to rank k mod world size, so that the same data makes the same update on
    every number of processes. Returns the mean loss per target token, the update, and whether to stop.
    """
    world, size = engine.world, config.train.micro_batch_size
    tokens, targets = dataset.count(state.cursor, config.train.global_batch_size)
    nll = torch.zeros((), dtype=torch.float64, device=world.device)
    asked = False
    for index in range(world.rank, engine.micro_batches, world.size):
        nll += engine.micro_step(dataset.batch(state.cursor + index * size, size), targets)
        asked = asked or stop.asked()
    update = engine.update(lr)
    total_nll, stopping = sum_over_ranks(world, nll.item(), asked)
    state.step += 1
    state.cursor += config.train.global_batch_size
    state.tokens_seen += tokens
    return total_nll / targets, update, stopping > 0


def _open_data(config: Config) -> tuple[TokenDataset, TokenDataset, Tokenizer]:
    """Training and held-out data and their tokenizer; UserError when they do not fit the model or each other."""
    data, train = config.data, config.train
    dataset = TokenDataset(data.path, "train", train.seq_len, data.packing, config.run.seed)
    held_out = TokenDataset(data.path, "val", train.seq_len, data.packing, config.run.seed)
    if dataset.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the {dataset.vocab_size} pieces of the tokenizer "
            f"in data.path {data.path}; set it to {dataset.vocab_size}"
        )
    if dataset.n_samples < train.global_batch_size:
        raise UserError(
            f"data.path: {data.path} holds {dataset.n_samples} rows of {train.seq_len} tokens, fewer than "
            f"train.global_batch_size {train.global_batch_size}; prepare more text or take a smaller batch"
        )
    return dataset, held_out, Tokenizer(dataset.tokenizer_file)


def _claim(store: CheckpointStore, console: Console) -> Path | None:
    store.lock()
    store.clean()
    return store.newest_good(console.say)


def _require_equal_supports(model: torch.nn.Module, world: World) -> None:
    """DeepSpeed broadcasts parameters, not buffers: ranks that drew other supports would train nonsense."""
    checksums = gather_outcomes(world, support_checksum(model))
    if len(set(checksums)) > 1:
        raise RunFailed(f"the sparse supports differ between processes (checksums {checksums}); are their versions equal?")


def _flops_per_step(config: Config) -> float:
    train = config.train
    micro = training_flops(config.model, config.linear, train.micro_batch_size, train.seq_len)["executed"]
    return micro * (train.global_batch_size // train.micro_batch_size)


def _count_skips(config: Config, state: TrainState, update: Update, console: Console) -> None:
    if update.applied:
        state.consecutive_skips = 0
        return
    state.skipped_steps += 1
    state.consecutive_skips += 1
    console.say(f"step {state.step}: the gradient is not finite; update skipped ({state.skipped_steps} so far)")
    if state.consecutive_skips >= config.guard.max_consecutive_skips:
        raise RunFailed(
            f"{state.consecutive_skips} updates in a row were skipped because the gradient was not finite "
            f"(guard.max_consecutive_skips); lower optimizer.lr or set train.grad_clip, and start from the last checkpoint"
        )


def _save(
    store: CheckpointStore,
    world: World,
    config: Config,
    state: TrainState,
    engine: Engine,
    dataset: TokenDataset,
    console: Console,
) -> bool:
    """Commit a checkpoint; a full disk costs this checkpoint, not the run."""
    try:
        save_checkpoint(store, world, config, state, whole_tensors(engine), dataset)
    except OSError as error:
        console.say(f"step {state.step}: CHECKPOINT NOT WRITTEN ({error}); older ones are untouched, training goes on")
        return False
    on_main(world, lambda: store.prune(config.checkpoint.keep))
    return True


def _samples(
    engine: Engine, tokenizer: Tokenizer, config: Config, step: int, console: Console, metrics: Metrics | None
) -> None:
    for prompt in config.eval.prompts:
        text = generate(engine.model, tokenizer, prompt, tokens=config.eval.sample_tokens, seed=config.run.seed)
        console.say("  | " + text.replace("\n", "\n  | "))
        if metrics:
            metrics.write_text(step, "samples", f"    {text}".replace("\n", "\n    "))


def _line(figures: dict[str, float]) -> str:
    return (
        f"loss {figures['train/loss']:.4f}  lr {figures['train/lr']:.2e}  grad norm {figures['train/grad_norm']:.3f}  "
        f"{figures['perf/tokens_per_s']:,.0f} tokens/s  {figures['perf/step_ms_p50']:.0f} ms "
        f"(p99 {figures['perf/step_ms_p99']:.0f})  {figures['mem/peak_gib']:.2f} GiB"
        + (f"  MFU {figures['perf/mfu']:.1%}" if "perf/mfu" in figures else "")
    )


def _introduce(
    console: Console, config: Config, world: World, dataset: TokenDataset, state: TrainState, grad_accum_steps: int
) -> None:
    train, steps = config.train, config.schedule.total_steps
    per_update = train.global_batch_size * train.seq_len
    console.say(versions_line())
    console.say(f"{world.size} x {device_name(world.device)}, {train.dtype}, ZeRO stage {config.parallel.zero_stage}")
    console.say(
        f"{train.micro_batch_size} sequences x {train.seq_len} tokens x {grad_accum_steps} micro-steps x {world.size} "
        f"processes = {per_update:,} tokens per update; x {steps:,} updates = {per_update * steps:,} tokens, "
        f"{per_update * steps / (dataset.n_samples * train.seq_len):.2f} epochs of {config.data.path}"
    )
    if state.step:
        console.say(f"resuming {config.run.dir} at step {state.step} ({state.tokens_seen:,} tokens seen)")
