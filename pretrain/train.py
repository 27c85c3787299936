"""`sparlow train`: the loop, from top to bottom."""

import time

import torch

from model.counts import training_flops
from model.errors import RunFailed
from pretrain import stop
from pretrain.checkpoint.save import save_checkpoint
from pretrain.config.schema import Config
from pretrain.distributed import World, on_main, sum_over_ranks
from pretrain.engine.engine import Update
from pretrain.engine.tensors import whole_tensors
from pretrain.evaluate import Evaluation, evaluate
from pretrain.fault import fault_point
from pretrain.generate import generate
from pretrain.hardware import device_name, peak_flops
from pretrain.memory import peak_bytes
from pretrain.metrics import Metrics, StepClock
from pretrain.run import Run, open_run
from pretrain.summary import versions_line, write_summary

STOPPED = 143


def train(config: Config, world: World) -> int:
    """Train to `config.last_step`, from the newest checkpoint of `run.dir` where there is one.

    Returns 0, or 143 when SIGTERM or Ctrl-C ended the run early, with a checkpoint committed.
    """
    stop.listen()
    run = open_run(config, world)
    config, state, console = run.config, run.state, run.console
    _introduce(run)
    if state.step >= config.last_step:
        console.say(f"nothing to do: {run.dir} is at step {state.step} already; raise train.max_steps to go on")
        _close(run)
        return 0

    metrics = Metrics(run.dir, state.step, config.metrics.tensorboard, active=world.is_main)
    clock = StepClock()
    evaluation, saved, stopping = None, False, False
    console.start_steps(state.step, config.last_step)

    while state.step < config.last_step and not stopping:
        started = time.perf_counter()
        lr = config.optimizer.lr * config.schedule.factor(state.step + 1)
        loss, update, stopping = train_step(run, lr)
        clock.add(time.perf_counter() - started)
        state.train_seconds += clock.last
        _count_skips(run, update)

        step = state.step
        ends, pauses = step == config.schedule.total_steps, step == config.last_step
        figures: dict[str, float] = {}
        if step % config.metrics.every == 0 or step == 1 or ends:
            figures = _step_figures(run, clock, loss, lr, update)
        console.step(step, _line(figures) if figures else None)

        due = ends or bool(config.eval.every and step % config.eval.every == 0)
        if (due or pauses) and not stopping:
            limit = None if ends else config.eval.tokens
            evaluation = evaluate(run.engine.model, run.held_out, world, config.train.micro_batch_size, limit)
            stopping = evaluation is None
            if evaluation:
                console.say(f"step {step:>6}  {evaluation}")
            if evaluation and due:  # a pause must not leave a trace in the metrics
                figures |= _val_figures(evaluation)
                _sample(run, metrics)
        metrics.write(step, figures)

        if step % config.checkpoint.every == 0 or pauses or stopping:
            saved = _save(run)

    console.stop_steps()
    metrics.close()
    if world.is_main:
        write_summary(run.dir, config, state, clock, evaluation, run.engine.reduced_bytes(), world)
    _close(run)
    if not saved:
        raise RunFailed(f"the last checkpoint could not be written to {run.store.folder}; free some disk space")
    if stopping:
        console.say(f"stopped at step {state.step} with a checkpoint; the same command goes on from here")
        return STOPPED
    return 0


def train_step(run: Run, lr: float) -> tuple[float, Update, bool]:
    """One optimizer step on the next global batch; moves the run's state on by one step.

    Micro-batch k of the global batch goes to rank k mod world size, so that the same data makes the same update on
    every number of processes. Returns the mean loss per target token, the update, and whether to stop.
    """
    config, engine, state, world = run.config, run.engine, run.state, run.world
    batch_size, size = config.train.global_batch_size, config.train.micro_batch_size
    tokens, targets = run.dataset.count(state.cursor, batch_size)
    nll = torch.zeros((), dtype=torch.float64, device=world.device)
    for index in range(world.rank, engine.micro_batches, world.size):
        nll += engine.micro_step(run.dataset.batch(state.cursor + index * size, size), targets)
    update = engine.update(lr)
    total_nll, asked = sum_over_ranks(world, nll.item(), stop.asked())
    state.step += 1
    state.cursor += batch_size
    state.tokens_seen += tokens
    state.flops += _flops_per_step(config)
    return total_nll / targets, update, asked > 0


def _flops_per_step(config: Config) -> float:
    train = config.train
    micro = training_flops(config.model, config.linear, train.micro_batch_size, train.seq_len)["executed"]
    return float(micro) * (train.global_batch_size // train.micro_batch_size)


def _count_skips(run: Run, update: Update) -> None:
    """RunFailed when too many updates in a row were skipped."""
    state = run.state
    if update.applied:
        state.consecutive_skips = 0
        return
    state.skipped_steps += 1
    state.consecutive_skips += 1
    run.console.say(f"step {state.step}: the gradient is not finite; update skipped ({state.skipped_steps} so far)")
    if state.consecutive_skips >= run.config.guard.max_consecutive_skips:
        raise RunFailed(
            f"{state.consecutive_skips} updates in a row were skipped because the gradient was not finite "
            "(guard.max_consecutive_skips); lower optimizer.lr or set train.grad_clip"
        )


def _step_figures(run: Run, clock: StepClock, loss: float, lr: float, update: Update) -> dict[str, float]:
    """What is logged of a training step, by TensorBoard tag."""
    config, world = run.config, run.world
    figures = {
        "train/loss": loss,
        "train/lr": lr,
        "train/grad_norm": update.grad_norm,
        "train/tokens_seen": run.state.tokens_seen,
        "train/skipped_steps": run.state.skipped_steps,
        "perf/tokens_per_s": config.train.global_batch_size * config.train.seq_len / clock.last,
        "perf/step_ms_p50": clock.percentile_ms(50),
        "perf/step_ms_p99": clock.percentile_ms(99),
        "mem/peak_gib": peak_bytes(world.device) / 2**30,
    }
    if peak := config.metrics.peak_tflops * 1e12 or peak_flops(world.device):
        figures["perf/mfu"] = _flops_per_step(config) / world.size / clock.steady_seconds() / peak
    return figures


def _line(figures: dict[str, float]) -> str:
    return (
        f"loss {figures['train/loss']:.4f}  lr {figures['train/lr']:.2e}  grad norm {figures['train/grad_norm']:.3f}  "
        f"{figures['perf/tokens_per_s']:,.0f} tokens/s  {figures['perf/step_ms_p50']:.0f} ms "
        f"(p99 {figures['perf/step_ms_p99']:.0f})  {figures['mem/peak_gib']:.2f} GiB"
        + (f"  MFU {figures['perf/mfu']:.1%}" if "perf/mfu" in figures else "")
    )


def _val_figures(evaluation: Evaluation) -> dict[str, float]:
    return {
        "val/loss": evaluation.loss,
        "val/ppl": evaluation.perplexity,
        "val/bits_per_byte": evaluation.bits_per_byte,
    }


def _sample(run: Run, metrics: Metrics) -> None:
    """Continue the fixed prompts. All ranks do, because ZeRO-3 gathers weights in every forward pass."""
    config = run.config
    for prompt in config.eval.prompts:
        text = generate(run.engine.model, run.tokenizer, prompt, tokens=config.eval.sample_tokens, seed=config.run.seed)
        run.console.say("  | " + text.replace("\n", "\n  | "))
        metrics.write_text(run.state.step, f"samples/{prompt.strip()}", text)


def _save(run: Run) -> bool:
    """Commit a checkpoint; a full disk costs this checkpoint, not the run."""
    try:
        save_checkpoint(run.store, run.world, run.config, run.state, whole_tensors(run.engine), run.dataset)
    except OSError as error:
        step = run.state.step
        run.console.say(f"step {step}: CHECKPOINT NOT WRITTEN ({error}); older ones are untouched, training goes on")
        return False
    on_main(run.world, lambda: run.store.prune(run.config.checkpoint.keep))
    fault_point("after_save")
    return True


def _close(run: Run) -> None:
    run.engine.close()
    on_main(run.world, run.store.unlock)


def _introduce(run: Run) -> None:
    """Versions, device and the token arithmetic, once."""
    config, world, train, say = run.config, run.world, run.config.train, run.console.say
    steps, per_update = config.schedule.total_steps, train.global_batch_size * train.seq_len
    micro_steps = run.engine.micro_batches // world.size
    epochs = per_update * steps / (run.dataset.n_samples * train.seq_len)
    say(versions_line())
    say(f"{world.size} x {device_name(world.device)}, {train.dtype}, ZeRO stage {config.parallel.zero_stage}")
    say(
        f"{train.micro_batch_size} sequences x {train.seq_len} tokens x {micro_steps} micro-steps x {world.size} "
        f"processes = {per_update:,} tokens per update; x {steps:,} updates = {per_update * steps:,} tokens, "
        f"{epochs:.2f} epochs of {config.data.path}"
    )
    if run.state.step:
        say(f"resuming {run.dir} at step {run.state.step} ({run.state.tokens_seen:,} tokens seen)")
