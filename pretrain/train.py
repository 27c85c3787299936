"""`sparlow train`: the loop, from top to bottom."""

import gc
import time
from pathlib import Path

import torch

from kernels.hardware import device_name
from model.errors import RunFailed
from pretrain import stop
from pretrain.checkpoint.save import save_checkpoint
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.distributed import World, on_main, shared, sum_over_ranks
from pretrain.engine.engine import Update
from pretrain.engine.tensors import whole_tensors
from pretrain.evaluate import Evaluation, evaluate
from pretrain.fault import fault_point
from pretrain.generate import generate
from pretrain.growth.between import grow
from pretrain.growth.describe import describe_stages
from pretrain.hardware import peak_flops
from pretrain.kernel_choices import describe
from pretrain.memory import peak_bytes
from pretrain.memory_plan.run import compare, planned_bytes
from pretrain.metrics import StepClock
from pretrain.plan import flops_per_update
from pretrain.run import Run, open_run
from pretrain.summary import summary_is_current, versions_line, write_summary

STOPPED = 143


def train(config: Config, world: World) -> int:
    """Train to `config.last_step`, from the newest checkpoint of `run.dir` where there is one.

    Returns 0, or 143 when SIGTERM or Ctrl-C ended the run early, with a checkpoint committed.
    """
    stop.listen()
    store = CheckpointStore(Path(config.run.dir))
    ended, first = False, True
    try:
        while not ended:
            run = open_run(config, world, store)
            try:
                if first:
                    _introduce(run)
                _introduce_stage(run)
                first = False
                stopped = _train(run)
            finally:
                run.console.stop_steps()
                run.metrics.close()
            run.engine.close()
            ended = stopped or run.state.step == config.last_step
            if not ended:
                grow(run)
            del run  # the old engine goes before the new one comes
            gc.collect()
    finally:
        store.unlock()
    return STOPPED if stopped else 0


def _train(run: Run) -> bool:
    """The loop over the steps of one stage; whether it was stopped before its end."""
    config, state, console = run.config, run.state, run.console
    clock, saved, stopping = StepClock(), True, False
    end = min(run.stage.end, config.last_step)
    evaluation = None
    if state.evaluation_due:
        figures = run.metrics.take_back(state.step)
        evaluation, stopping = _evaluate(run, figures)
        run.metrics.write(state.step, figures)
    console.start_steps(state.step, config.last_step)

    while state.step < end and not stopping:
        started = time.perf_counter()
        lr = run.stage.lr(state.step + 1)
        loss, update, stopping = train_step(run, lr)
        clock.add(time.perf_counter() - started)
        state.train_seconds += clock.last
        _count_skips(run, update)

        step, ends = state.step, state.step == config.schedule.total_steps
        logs = step % config.metrics.every == 0 or step == 1 or ends
        figures = _step_figures(run, clock, loss, lr, update) if logs else {}
        console.step(step, _line(figures) if figures else None)

        state.evaluation_due = ends or bool(config.eval.every and step % config.eval.every == 0)
        evaluation = None
        if state.evaluation_due and not stopping:
            evaluation, stopping = _evaluate(run, figures)
        run.metrics.write(step, figures)

        if step % config.checkpoint.every == 0 or step == end or stopping:
            saved = _save(run)

    if not saved:
        raise shared(RunFailed(f"the last checkpoint could not be written to {run.store.folder}; free some disk space"))
    if not stopping and end < config.last_step:
        return False
    if not stopping:
        if clock.empty and on_main(run.world, lambda: summary_is_current(run.dir, state.step)):
            console.say(f"nothing to do: {run.dir} is at step {state.step} already; raise train.max_steps to go on")
            return False
        # A rerun of a finished command comes here too, and makes up for a summary that a kill has prevented.
        evaluation = evaluation or _held_out(run)
        stopping = evaluation is None
    on_main(run.world, lambda: write_summary(run.dir, run.stage, state, clock, evaluation, run.engine, run.world))
    for line in compare(planned_bytes(run.stage, state, run.world), run.world):
        console.say(line)
    if stopping:
        console.say(f"stopped at step {state.step} with a checkpoint; the same command goes on from here")
    return stopping


def _evaluate(run: Run, figures: dict[str, float]) -> tuple[Evaluation | None, bool]:
    """The evaluation that is due: adds to `figures`, prints samples. Second: whether it was stopped, so still due."""
    evaluation = _held_out(run)
    if evaluation is None:
        return None, True
    figures["val/loss"] = evaluation.loss
    figures["val/ppl"] = evaluation.perplexity
    figures["val/bits_per_byte"] = evaluation.bits_per_byte
    _sample(run)
    run.state.evaluation_due = False
    return evaluation, stop.agreed(run.world)


def _held_out(run: Run) -> Evaluation | None:
    """Held-out figures at this step, of the whole split at the schedule's end; None when told to stop."""
    config, step = run.config, run.state.step
    limit = None if step == config.schedule.total_steps else config.eval.tokens
    evaluation = evaluate(run.engine.model, run.held_out, run.world, config.train.micro_batch_size, limit)
    if evaluation:
        run.console.say(f"step {step:>6}  {evaluation}")
    return evaluation


def train_step(run: Run, lr: float) -> tuple[float, Update, bool]:
    """One optimizer step on the next global batch; moves the run's state on by one step.

    Micro-batch k of the global batch goes to rank k mod world size, so that the same data makes the same update on
    every number of processes. Returns the mean loss per target token, the update, and whether to stop.
    """
    config, engine, state, world = run.config, run.engine, run.state, run.world
    batch_size, size = config.train.global_batch_size, config.train.micro_batch_size
    tokens, targets = run.dataset.count(state.cursor, batch_size)
    engine.begin(lr, state.step)
    nll = torch.zeros((), dtype=torch.float64, device=world.device)
    for index in range(world.rank, engine.micro_batches, world.size):
        nll += engine.micro_step(run.dataset.batch(state.cursor + index * size, size), targets)
    update = engine.update()
    total_nll, asked = sum_over_ranks(world, nll.item(), stop.asked())
    state.step += 1
    state.cursor += batch_size
    state.tokens_seen += tokens
    state.flops += flops_per_update(run.stage.config, "executed")
    state.flops_dense_equivalent += flops_per_update(run.stage.config, "dense_equivalent")
    return total_nll / targets, update, asked > 0


def _count_skips(run: Run, update: Update) -> None:
    """RunFailed when too many updates in a row were skipped."""
    state = run.state
    if update.applied:
        state.updates += 1
        state.consecutive_skips = 0
        return
    state.skipped_steps += 1
    state.consecutive_skips += 1
    run.console.say(f"step {state.step}: the gradient is not finite; update skipped ({state.skipped_steps} so far)")
    if state.consecutive_skips >= run.config.guard.max_consecutive_skips:
        raise shared(
            RunFailed(
                f"{state.consecutive_skips} updates in a row were skipped because the gradient was not finite "
                "(guard.max_consecutive_skips); lower optimizer.lr or set train.grad_clip"
            )
        )


def _step_figures(run: Run, clock: StepClock, loss: float, lr: float, update: Update) -> dict[str, float]:
    """What is logged of a training step, by TensorBoard tag."""
    config, world = run.config, run.world
    figures = {
        "train/loss": loss,
        "train/lr": lr,
        f"train/{run.engine.norm_name}": update.grad_norm,
        "train/tokens_seen": run.state.tokens_seen,
        "train/skipped_steps": run.state.skipped_steps,
        "train/flops": run.state.flops,
        "train/flops_dense_equivalent": run.state.flops_dense_equivalent,
        "perf/tokens_per_s": config.train.global_batch_size * config.train.seq_len / clock.last,
        "perf/step_ms_p50": clock.percentile_ms(50),
        "perf/step_ms_p99": clock.percentile_ms(99),
        "mem/peak_gib": peak_bytes(world.device) / 2**30,
    } | run.engine.figures()
    if peak := config.metrics.peak_tflops * 1e12 or peak_flops(world.device):
        figures["perf/mfu"] = (
            flops_per_update(run.stage.config, "executed") / world.size / clock.steady_seconds() / peak
        )
    if config.growth.enabled:
        figures["growth/layers"] = run.stage.config.model.n_layers
    return figures


def _line(figures: dict[str, float]) -> str:
    return (
        f"loss {figures['train/loss']:.4f}  lr {figures['train/lr']:.2e}  "
        f"grad norm {figures.get('train/grad_norm', figures.get('train/grad_norm_projected', 0.0)):.3f}  "
        f"{figures['perf/tokens_per_s']:,.0f} tokens/s  {figures['perf/step_ms_p50']:.0f} ms "
        f"(p99 {figures['perf/step_ms_p99']:.0f})  {figures['mem/peak_gib']:.2f} GiB"
        + (f"  MFU {figures['perf/mfu']:.1%}" if "perf/mfu" in figures else "")
    )


def _sample(run: Run) -> None:
    """Continue the fixed prompts. All ranks do, because ZeRO-3 gathers weights in every forward pass."""
    model, tokens, seed = run.engine.model, run.config.eval.sample_tokens, run.config.run.seed
    for prompt in run.config.eval.prompts:
        text = generate(model, run.tokenizer, prompt, tokens=tokens, seed=seed, world=run.world)
        run.console.say("  | " + text.replace("\n", "\n  | "))
        run.metrics.write_text(run.state.step, f"samples/{prompt.strip()}", text)


def _save(run: Run) -> bool:
    """Commit a checkpoint; a full disk costs this checkpoint, not the run."""
    try:
        save_checkpoint(run.store, run.world, run.config, run.state, whole_tensors(run.engine), run.dataset)
    except OSError as error:
        step = run.state.step
        run.console.say(f"step {step}: CHECKPOINT NOT WRITTEN ({error}); older ones are untouched, training goes on")
        return False
    on_main(run.world, lambda: run.store.prune(run.config.checkpoint.keep, run.console.say))
    fault_point("after_save")
    return True


def _introduce(run: Run) -> None:
    """Versions, device, the token arithmetic and where the run stands, once."""
    config, world, train, say = run.config, run.world, run.config.train, run.console.say
    steps, per_update = config.schedule.total_steps, train.global_batch_size * train.seq_len
    micro_steps = run.engine.micro_batches // world.size
    epochs = per_update * steps / (run.dataset.n_samples * train.seq_len)
    say(versions_line())
    offload = ", optimizer state in host memory" if config.parallel.offload == "optimizer" else ""
    say(f"{world.size} x {device_name(world.device)}, {train.dtype}, ZeRO stage {config.parallel.zero_stage}{offload}")
    say(
        f"{train.micro_batch_size} sequences x {train.seq_len} tokens x {micro_steps} micro-steps x {world.size} "
        f"processes = {per_update:,} tokens per update; x {steps:,} updates = {per_update * steps:,} tokens, "
        f"{epochs:.2f} epochs of {config.data.path}"
    )
    if getattr(config.optimizer, "update", "step") == "per_layer":
        say(
            f'WARNING: updates on {per_update:,} tokens each, as optimizer.update = "per_layer" accumulates nothing: '
            "a learning rate found with larger updates is too high"
        )
    for line in describe_stages(config):
        say(line)
    if run.state.grown and not run.state.step:
        say(f"beginning with a grown model ({run.state.tokens_seen:,} tokens seen)")
    if run.state.step:
        say(f"resuming {run.dir} at step {run.state.step} ({run.state.tokens_seen:,} tokens seen)")


def _introduce_stage(run: Run) -> None:
    """How its model computes, and in how much memory."""
    for line in describe(run.state.kernels):
        run.console.say(line)
    planned = planned_bytes(run.stage, run.state, run.world)
    run.console.say(f"planned peak of tensors in a process: {planned / 2**30:.2f} GiB")
