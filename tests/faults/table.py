"""The faults that a run survives: what happens, and what is promised then.

A test that injects one is marked `pytest.mark.fault("F3")`, wherever it lies.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One line of the suite."""

    happens: str
    promise: str


FAULTS = {
    "F1": Fault("a run is stopped and resumed, with every optimizer", "every tensor, count and logged loss is equal"),
    "F2": Fault("a resume before, at and after a projector's refresh", "equal, with as many refreshes"),
    "F3": Fault("kill -9 at every point of a save", "the newest complete checkpoint is found; the end is equal"),
    "F4": Fault("kill -9 at random moments", "the end is equal to the undisturbed run's"),
    "F5": Fault(
        "a file of the newest checkpoint is cut, zeroed or has a bit flipped",
        "it is named and set aside; the run goes on from the one before",
    ),
    "F6": Fault("all checkpoints are damaged", "one sentence; never a silent start from scratch"),
    "F7": Fault("`latest` is missing, empty, points to nothing or holds garbage", "the best checkpoint is found"),
    "F8": Fault("a manifest names paths outside, links, duplicates, absurd sizes", "refused, nothing outside touched"),
    "F9": Fault("a pickle is offered as a checkpoint or tokenizer", "refused; none of its code runs"),
    "F10": Fault("code, unknown keys, wrong types, absurd values in a configuration", "refused with the key named"),
    "F11": Fault(
        "the disk is full during a save", "training goes on, the old checkpoint stays, the next save succeeds"
    ),
    "F12": Fault("the disk has no room for the run", "refused before the first step, with what is needed and free"),
    "F13": Fault("the run folder cannot be written", "one sentence, exit 2"),
    "F14": Fault(
        "SIGTERM at any moment, on one and two processes", "a checkpoint and status 143 in seconds; a resume is equal"
    ),
    "F15": Fault("SIGTERM to one of two processes", "both save the same step and end"),
    "F16": Fault("a second signal during a save", "a fast end; the old checkpoint is good"),
    "F17": Fault("kill -9 of one of two processes", "the launcher ends; a resume is exact; --max-restarts heals"),
    "F18": Fault("an error on one rank only", "all ranks end with the same sentence, none waits"),
    "F19": Fault("a loss or gradient that is not finite, on one rank", "the step is skipped on all; no state changes"),
    "F20": Fault("many such steps in a row", "the run gives up at the limit, with finite weights"),
    "F20b": Fault("one such step, then clean ones", "exactly one step is skipped"),
    "F21": Fault("a spike of the loss", "off, log, skip or rewind, as configured"),
    "F22": Fault("a resume on another number of processes", "the same data, losses equal up to rounding"),
    "F23": Fault("shards missing, cut, changed, with ids beyond the vocabulary", "named; changed data is refused"),
    "F24": Fault("malformed texts in `prepare`", "counted, or one sentence"),
    "F25": Fault("gradients that break a decomposition", "never NaN; the old basis is kept"),
    "F26": Fault("a matrix does not take the low-rank path", "the run ends at the first step"),
    "F27": Fault("kill -9 around a growth", "the small checkpoint is whole; the rerun ends the same"),
    "F28": Fault("kill -9 during an export", "no half folder; the same command works"),
    "F29": Fault("no network, no home folder, no git", "the quick start works"),
    "F30": Fault("two processes on one run folder", "the second is refused; a stale lock does not matter"),
    "F31": Fault("the clock jumps, counters are huge", "no negative speed, no crash"),
    "F32": Fault("hundreds of steps", "memory and open files stay flat"),
    "F33": Fault("a rank fails while a save gathers tensors", "all ranks end with its sentence"),
    "F34": Fault("a signal in the middle of a step of thousands of micro-steps", "answered within seconds"),
    "F35": Fault("train.max_steps below the step reached", "nothing to do is said; the run stays good"),
    "F36": Fault("all step folders are gone, metrics are left", "refused; no silent start from scratch"),
    "F37": Fault("a shard changes at equal size, or is cut while training", "found before it trains; one sentence"),
    "F38": Fault(
        "a skipped step in per-layer mode or at a refresh",
        "no tensor changes; per layer, none after the first bad gradient",
    ),
    "F39": Fault("kill -9 during `export --overwrite`, a failed check", "the old or the new export is there, whole"),
    "F40": Fault("any bit of a manifest is flipped", "found; the checkpoint before is used"),
    "F41": Fault("metrics.jsonl or summary.json has a broken tail", "read as far as it goes"),
    "F42": Fault("`prepare` meets pipes, devices, growing and broken files", "named; it ends"),
    "F43": Fault("eval, sample and export beside a run that deletes checkpoints", "they work on the newest"),
    "F44": Fault("a full disk empties again", "metrics and TensorBoard go on, no line is lost to another"),
    "F45": Fault("checkpoints, configurations and tokenizers from strangers", "one sentence, whatever is in them"),
    "F46": Fault(
        "a process is stopped (SIGSTOP), or all of them for a while", "it is named and all end; the run goes on"
    ),
    "F47": Fault("SLURM preempts a job that may be requeued", "a checkpoint, and the job is requeued and goes on"),
}
"""Faults by name, in the order of the report."""

PROTECTIONS = {
    "F1": "pretrain/engine/own.py: put(stored.to(self.world.device, copy=True))",
    "F2": "pretrain/engine/own.py: setattr(self.optimizer, count, int(number))",
    "F3": 'pretrain/checkpoint/save.py: temporary = final.with_name(f"{final.name}.tmp.{os.getpid()}")',
    "F4": "pretrain/loop/train.py: if clock.empty and on_main(run.world, lambda: summary_is_current(",
    "F5": "pretrain/checkpoint/manifest.py: if file_sha256(folder / entry.name) != entry.sha256:",
    "F6": 'pretrain/checkpoint/store.py: if broken or any(self.folder.glob("*.corrupt*")):',
    "F7": "pretrain/checkpoint/store.py: self._make_room(say)",
    "F8": 'pretrain/checkpoint/manifest.py: if not is_plain(name) or name == "manifest.json":',
    "F9": 'pretrain/checkpoint/read.py: with _sound(path), safe_open(path, framework="pt") as shard:',
    "F10": "pretrain/config/plain.py: except RecursionError:",
    "F11": "pretrain/checkpoint/writing.py: discard(self.draft)",
    "F12": "pretrain/checkpoint/save.py: if free < needed:",
    "F13": 'pretrain/checkpoint/store.py: raise UserError(f"run.dir: {self.folder.parent} cannot be written',
    "F14": "pretrain/loop/train.py: if stop.due():",
    "F15": 'pretrain/machine/watch.py: store.set("stop/asked", str(self.rank))',
    "F16": "pretrain/machine/stop.py: elif time.monotonic() - _asked_at > SAME_S:",
    "F17": "pretrain/machine/distributed.py: own = dist.PrefixStore(_attempt(), store)",
    "F18": "pretrain/machine/distributed.py: fail(watch, error)",
    "F19": "pretrain/loop/train.py: if guard.accepts(loss) else engine.drop()",
    "F20": "pretrain/loop/guard.py: if state.consecutive_skips >= self.config.max_consecutive_skips:",
    "F20b": "pretrain/loop/guard.py: if update.applied:",
    "F21": "pretrain/loop/rewind.py: cursor=state.cursor",
    "F22": "pretrain/loop/train.py: for index in range(world.rank, engine.micro_batches, world.size)",
    "F23": "pretrain/loop/run.py: if unlisted := on_main(world, partial(check_at_start, path)):",
    "F24": "pretrain/data/sources/rows.py: except (ValueError, RecursionError):",
    "F25": "pretrain/optim/projector/base.py: if not 0 < float(largest) < math.inf:",
    "F26": "pretrain/engine/own.py: if self.optimizer.applied and taken != planned:",
    "F27": "pretrain/loop/run.py: store.clean()",
    "F28": "model/hf/staging.py: shutil.rmtree(path) if path.is_dir() else path.unlink()",
    "F29": 'pretrain/machine/distributed.py: return None if class_name == "ShareMemCommBuilder"',
    "F30": "pretrain/checkpoint/lock.py: {self.of} is in use by {_words(owner)}; wait for it or",
    "F31": 'pretrain/checkpoint/folders.py: STEP_FOLDER = re.compile(r"step-(\\d{8,})',
    "F32": "pretrain/loop/metrics.py: deque(maxlen=STEPS_KEPT)",
    "F33": "pretrain/checkpoint/save.py: if isinstance(read, Gathered):",
    "F34": "pretrain/loop/train.py: if stop.due():",
    "F35": "pretrain/loop/train.py: if state.step > config.last_step:",
    "F36": "pretrain/checkpoint/store.py: require_none_lost(self.folder.parent, self._locked_before)",
    "F37": "pretrain/data/sound.py: if digest(found) != digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]:",
    "F38": "pretrain/optim/own_optimizer.py: self._broken = not math.isfinite(square.item())",
    "F39": "model/hf/staging.py: replaced.rename(out)",
    "F40": "pretrain/checkpoint/manifest.py: hashlib.sha256(data[:start]).hexdigest().encode() == found[1]",
    "F41": "pretrain/loop/records.py: except (ValueError, RecursionError):",
    "F42": "pretrain/data/sources/bounded.py: if room and not count:",
    "F43": "pretrain/checkpoint/read.py: if not on_main(world, lambda: has_another(path)):",
    "F44": "pretrain/loop/board.py: self._writer = None",
    "F45": "pretrain/loop/state.py: require_fields(data)",
    "F46": "pretrain/machine/watch.py: if silent:",
    "F47": 'launch/slurm.sbatch: if [ "$status" -eq 143 ]; then',
}
"""The line of the sources that decides: without it, tests of the fault were seen to fail."""
