"""`sparlow train`: the loop, from top to bottom."""

import gc
import time
from functools import partial
from pathlib import Path

import torch

from model.errors import RunFailed, UserError
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.schema import Config
from pretrain.engine.base import Update
from pretrain.growth.grow import grow
from pretrain.loop.about import open_mirror
from pretrain.loop.guard import Guard
from pretrain.loop.introduction import introduce
from pretrain.loop.metrics import StepClock
from pretrain.loop.mirror import Mirror
from pretrain.loop.optional import attempt, reason
from pretrain.loop.origin import Start
from pretrain.loop.profile import Profile
from pretrain.loop.resume import amended, new_run, out_of_memory
from pretrain.loop.rewind import find_way, rewind
from pretrain.loop.run import Run, open_run
from pretrain.loop.spectra import measure_spectra, ranks_of
from pretrain.loop.summary import summary_is_current, write_summary
from pretrain.machine import stop
from pretrain.machine.distributed import World, on_main, shared, sum_over_ranks
from pretrain.machine.fault import fault_point
from pretrain.machine.files import read_json
from pretrain.machine.hardware import peak_flops
from pretrain.machine.memory import peak_figures
from pretrain.memory_plan.run import compare, planned_bytes
from pretrain.plan import flops_per_update
from pretrain.using.evaluate import Evaluation, evaluate
from pretrain.using.generate import generate

TOLD_DATA_WAIT = 0.03
"""Share of a step that may wait for data without being told of in its line."""


def train(config: Config, world: World, start: Start | None = None) -> int:
    """Train to `config.last_step`, from the newest checkpoint of `run.dir` where there is one, else from `start`.

    Returns 0, or 143 when SIGTERM, Ctrl-C or a closed terminal ended it early, with a checkpoint; such a signal while
    the run opens ends the process with 143, as nothing has been computed.
    """
    stop.listen()
    store = CheckpointStore(Path(config.run.dir))
    ended, first = False, True
    mirror: Mirror | None = None
    try:
        while not ended:
            stop.opening()
            run, clock = open_run(config, world, store, start, first), StepClock()
            stop.opened()
            try:
                attempt(world, run.console, "this run is not described", partial(introduce, run, whole=first))
                first = False
                run.metrics.mirror = mirror = mirror or open_mirror(run)
                profile = Profile(run)
                stopped = _train(run, clock, profile)
                profile.close()
            except Exception as error:
                run.saver.close(alone=not getattr(error, "on_all_ranks", False))
                _summarize_failure(run, clock, error)
                raise
            finally:
                run.saver.close()
                run.reader.close()
                run.console.stop_steps()
                run.metrics.close()
            run.engine.close()
            ended = stopped or (run.state.step >= config.last_step and not run.goes_back)
            if run.goes_back:
                run.goes_back()
            elif not ended:
                grow(run)
            del run  # the old engine goes before the new one comes
            gc.collect()
    except (UserError, RunFailed) as error:
        raise amended(error, config, store) from error
    except torch.OutOfMemoryError as error:
        raise amended(out_of_memory(error), config, store) from error
    finally:
        if mirror:
            mirror.close(read_json(Path(config.run.dir) / "summary.json"))
        stop.opened()
        store.unlock()
    if stopped:
        stop.stopped()
    return stop.STOPPED if stopped else 0


def _train(run: Run, clock: StepClock, profile: Profile) -> bool:
    """Loop over the steps of one stage; return whether it was stopped before its end."""
    config, state, console = run.config, run.state, run.console
    if state.step > config.last_step:  # a lowered train.max_steps takes nothing back, and grows nothing early
        console.say(
            f"nothing to do: {run.dir} is at step {state.step} already, past train.max_steps {config.last_step}; "
            f"{_how_to_go_on(run)}"
        )
        return False
    stopping = False
    end = min(run.stage.end, config.last_step)
    evaluation = None
    # metrics.jsonl has an evaluation that was made after the checkpoint, which calls it due.
    if state.evaluation_due and not on_main(run.world, lambda: run.metrics.has(state.step, "val/loss")):
        evaluation, stopping = _evaluate(run)
    console.start_steps(state.step, config.last_step)

    while state.step < end and not stopping:
        profile.before_step()
        started, seen, waited = time.perf_counter(), state.tokens_seen, run.reader.waited
        lr = run.stage.lr(state.step + 1)
        made = train_step(run, lr)
        if made is None:
            stopping = True
            break
        loss, update = made
        seconds = time.perf_counter() - started
        clock.add(seconds, state.tokens_seen - seen, run.reader.waited - waited, usual=not profile.on)
        profile.after_step()
        state.train_seconds += clock.last
        _record(run, loss, update)
        if run.goes_back:
            return False

        step, ends = state.step, state.step == config.schedule.total_steps
        logs = step % config.metrics.every == 0 or step == 1 or ends
        figures = _step_figures(run, clock, loss, lr, update) if logs else {}
        console.step(step, _line(figures) if figures else None)
        run.metrics.write(step, figures)

        # The save comes first: whatever error ends the evaluation, the steps so far are committed before the run ends.
        state.evaluation_due = ends or bool(config.eval.every and step % config.eval.every == 0)
        if step % config.checkpoint.every == 0 or step == end:
            began = time.perf_counter()
            run.saver.save(state, run.engine.whole_tensors)
            clock.add_save(time.perf_counter() - began)
        if config.metrics.spectra_every and (step % config.metrics.spectra_every == 0 or ends):
            spectra = attempt(run.world, console, f"step {step}: spectra not measured", lambda: measure_spectra(run))
            run.metrics.write(step, ranks_of(spectra or {}))
            run.metrics.write_spectra(step, spectra or {})
        evaluation = None
        if state.evaluation_due:
            evaluation, stopping = _evaluate(run)

    saved = run.saver.finish()
    if stopping and state.step and not on_main(run.world, lambda: run.store.ends_at(state.step)):
        run.saver.save(state, run.engine.whole_tensors)
        saved = run.saver.finish()
    if not saved:
        raise shared(RunFailed(f"the last checkpoint could not be written to {run.store.folder}; free some disk space"))
    if not stopping and end < config.last_step:
        return False
    if not stopping:
        if clock.empty and on_main(run.world, lambda: summary_is_current(run.dir, state.step)):
            console.say(f"nothing to do: {run.dir} is at step {state.step} already; {_how_to_go_on(run)}")
            return False
        # A rerun of a finished command comes here too, and makes up for a summary that a kill has prevented.
        if evaluation is None:
            evaluation, stopping = _held_out(run)
    _summarize(run, clock, evaluation)
    if stopping and state.step:
        console.say(f"stopped at step {state.step} with a checkpoint; the same command goes on from here")
    elif stopping:
        console.say("stopped before the end of the first step; the same command begins again")
    return stopping


def _how_to_go_on(run: Run) -> str:
    """The schedule's end is the end of the run: only a new one has another schedule."""
    last, newest = run.config.schedule.total_steps, next(iter(run.store.folders()), "CHECKPOINT")
    if run.state.step < last:
        return f"raise train.max_steps to go on, at most to the schedule's end at step {last}"
    return f"its schedule has ended; a new run with a schedule of its own goes on from it: {new_run(newest)}"


def _summarize(run: Run, clock: StepClock, evaluation: Evaluation | None) -> None:
    """summary.json, and how the planned memory compares. RunFailed where the disk is full."""
    try:
        on_main(run.world, lambda: write_summary(run, clock, evaluation))
    except RunFailed:
        raise
    except Exception as error:
        run.console.say(f"summary.json not written ({reason(error)}); the checkpoint is")

    def say_comparison() -> None:
        for line in compare(planned_bytes(run.stage, run.state, run.world), run.world):
            run.console.say(line)

    attempt(run.world, run.console, "planned and measured memory not compared", say_comparison)


def _summarize_failure(run: Run, clock: StepClock, error: Exception) -> None:
    """summary.json of a run that `error` ends; by this rank alone, as the others may be gone or at another place."""
    if not run.world.is_main:
        return
    try:
        write_summary(run, clock, None, error)
    except Exception as failure:
        run.console.say(f"summary.json not written ({reason(failure)})")


def _evaluate(run: Run) -> tuple[Evaluation | None, bool]:
    """The evaluation that is due, logged, and samples. Second: whether it was stopped, so still due."""
    evaluation, stopped = _held_out(run)
    if stopped:
        return None, True
    attempt(run.world, run.console, f"step {run.state.step}: samples not made", lambda: _sample(run))
    if evaluation:
        run.metrics.write(run.state.step, evaluation.figures())
    run.state.evaluation_due = False
    return evaluation, stop.due()


def _held_out(run: Run) -> tuple[Evaluation | None, bool]:
    """Held-out figures at this step, of the whole split at the schedule's end; none when they cannot be made.

    Second: whether it was told to stop before its end.
    """
    config, step = run.config, run.state.step
    limit = None if step == config.schedule.total_steps else config.eval.tokens

    def work() -> tuple[Evaluation | None, bool]:
        found = evaluate(run.engine.model, run.held_out, run.world, config.train.micro_batch_size, limit)
        if found:
            run.console.say(f"step {step:>6}  {found}")
        return found, found is None

    return attempt(run.world, run.console, f"step {step}: held-out loss not measured", work) or (None, False)


def train_step(run: Run, lr: float) -> tuple[float, Update] | None:
    """Make one optimizer step on the next global batch; moves the run's state on by one step.

    Micro-batch k of the global batch goes to rank k mod world size, so that the same data makes the same update on
    every number of processes. Returns the mean loss per target token and the update. None when told to stop before
    its last micro-step: the sums so far are worth nothing then, and the state is that before the step.
    """
    config, engine, state, world = run.config, run.engine, run.state, run.world
    batch_size, size = config.train.global_batch_size, config.train.micro_batch_size
    tokens, targets = run.dataset.count(state.cursor, batch_size)
    engine.begin(lr, state.step)
    guard = Guard(config.guard, state)
    nll = torch.zeros((), dtype=torch.float64, device=world.device)
    cursors = [state.cursor + index * size for index in range(world.rank, engine.micro_batches, world.size)]
    ends = state.step + 1 == min(run.stage.end, config.last_step)
    next_cursors = [*cursors[1:], None if ends else cursors[0] + batch_size]
    for cursor, next_cursor in zip(cursors, next_cursors, strict=True):
        fault_point("micro_step")
        if stop.due():
            return None
        batch = run.reader.read(cursor, next_cursor)
        nll += engine.micro_step(batch, targets, lambda summed: guard.accepts(summed / targets))
    # All ranks know the loss of all before any of them changes a weight.
    (total_nll,) = sum_over_ranks(world, nll.item())
    loss = total_nll / targets
    update = engine.update(guard.largest_norm) if guard.accepts(loss) else engine.drop()
    state.step += 1
    state.cursor += batch_size
    state.tokens_seen += tokens
    state.count_sources(run.dataset.seen(state.cursor - batch_size, batch_size))
    state.flops += flops_per_update(run.stage.config, "executed", state.kernels, world.size)
    state.flops_dense_equivalent += flops_per_update(run.stage.config, "dense_equivalent", state.kernels, world.size)
    return loss, update


def _record(run: Run, loss: float, update: Update) -> None:
    """Count the newest step, say what was wrong with it, and have the run go back from a spike where it is to.

    RunFailed when too many in a row were skipped, or gone back from.
    """
    guard = Guard(run.config.guard, run.state)
    findings = guard.record(loss, update)
    if findings:
        run.console.say(f"step {run.state.step}: {guard.describe(findings, update)}")
    if cause := guard.goes_back(findings, update):
        run.saver.finish()
        way = find_way(run)
        if way is None:
            run.console.say(f"step {run.state.step}: there is no checkpoint yet to go back to")
        else:
            guard.require_rewind(cause)
            run.goes_back = partial(rewind, run, way, cause)


def _step_figures(run: Run, clock: StepClock, loss: float, lr: float, update: Update) -> dict[str, float]:
    """What is logged of a training step, by TensorBoard tag."""
    state = run.state
    figures = {
        "train/loss": loss,
        "train/lr": lr,
        f"train/{run.engine.norm_name}": update.grad_norm,
        "train/tokens_seen": state.tokens_seen,
        "train/skipped_steps": state.skipped_steps,
        "train/flops": state.flops,
        "train/flops_dense_equivalent": state.flops_dense_equivalent,
    } | Guard(run.config.guard, state).figures()
    for name, source in run.dataset.sources.items():
        figures[f"data/{name}/tokens"] = state.sources[name]["tokens"]
        figures[f"data/{name}/epochs"] = state.sources[name]["samples"] / source.n_samples
    try:  # of this rank alone, and rank 0's count: nothing to agree on
        figures |= _performance(run, clock)
    except Exception as error:
        if "figures" not in run.told:
            run.console.say(f"step {state.step}: speed and memory not measured ({reason(error)}); training goes on")
        run.told.add("figures")
    return figures


def _performance(run: Run, clock: StepClock) -> dict[str, float]:
    config, world = run.config, run.world
    figures = {
        "perf/tokens_per_s": clock.last_tokens_per_second,
        **{f"perf/step_ms_p{percent}": clock.percentile_ms(percent) for percent in (50, 90, 99)},
        "perf/data_wait": clock.last_data_wait,
        "perf/checkpoint_wait": clock.take_checkpoint_wait(),
        "perf/train_seconds": run.state.train_seconds,
        **peak_figures(world.device),
    } | run.engine.figures()
    if peak := config.metrics.peak_tflops * 1e12 or peak_flops(world.device):
        flops = flops_per_update(run.stage.config, "executed", run.state.kernels, world.size)
        figures["perf/mfu"] = flops / world.size / clock.steady_seconds() / peak
    if config.growth.enabled:
        figures["growth/layers"] = run.stage.config.model.n_layers
    return figures


def _line(figures: dict[str, float]) -> str:
    line = (
        f"loss {figures['train/loss']:.4f}  lr {figures['train/lr']:.2e}  "
        f"grad norm {figures.get('train/grad_norm', figures.get('train/grad_norm_projected', 0.0)):.3f}"
    )
    if "perf/tokens_per_s" in figures:
        # The peak of tensors, or where nobody counts them that of the process, which is more.
        process = f"process {figures['mem/peak_resident_gib']:.2f} GiB"
        memory = f"{figures['mem/peak_gib']:.2f} GiB" if "mem/peak_gib" in figures else process
        line += (
            f"  {figures['perf/tokens_per_s']:,.0f} tokens/s  {figures['perf/step_ms_p50']:.0f} ms "
            f"(p99 {figures['perf/step_ms_p99']:.0f})  {memory}"
        )
        if figures["perf/data_wait"] > TOLD_DATA_WAIT:
            line += f"  waits for data {figures['perf/data_wait']:.0%}"
    return line + (f"  MFU {figures['perf/mfu']:.1%}" if "perf/mfu" in figures else "")


def _sample(run: Run) -> None:
    """Continue the fixed prompts. All ranks do, because ZeRO-3 gathers weights in every forward pass."""
    model, tokens, seed = run.engine.model, run.config.eval.sample_tokens, run.config.run.seed
    if (tokenizer := run.dataset.tokenizer) is None:
        return
    for prompt in run.config.eval.prompts:
        text = generate(model, tokenizer, prompt, tokens=tokens, seed=seed, world=run.world)
        run.console.say("  | " + text.replace("\n", "\n  | "))
        run.metrics.write_sample(run.state.step, prompt, text)
