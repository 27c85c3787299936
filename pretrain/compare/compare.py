"""`sparlow compare`: from the first run to the last, whatever befalls one of them."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from model.errors import RunFailed, UserError
from pretrain.checkpoint.lock import FolderLock
from pretrain.checkpoint.store import CheckpointStore
from pretrain.compare.execute import Ended, Pool, places
from pretrain.compare.forecast import Forecast, forecast
from pretrain.compare.matrix import Method, Run, make_methods
from pretrain.compare.outcome import NOTE, Outcome, read_outcome, require_same
from pretrain.compare.progress import Progress
from pretrain.compare.results import here
from pretrain.compare.suite import Suite
from pretrain.compare.write import write_comparison
from pretrain.data.open import open_dataset, require_vocabulary
from pretrain.machine.files import read_json, replace_text
from pretrain.machine.output import Output
from pretrain.machine.stop import KILLED

PATIENCE_S, LOOK_S = 600.0, 0.5
"""How long to wait for runs of a command that was killed, which commit a checkpoint first, and how often to look."""


@dataclass(frozen=True)
class Options:
    """What the command line says besides the suite."""

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    only: str = "*"
    dry_run: bool = False


def compare(suite: Suite, options: Options) -> int:
    """Run what is missing and write the tables; 0, 1 where a run has failed or diverged, 143 or 137 after a signal.

    UserError, before anything runs, for a method that cannot be, or a folder with a run of another configuration.
    RunFailed where the disk is full; runs that are under way then commit a checkpoint and stop.
    """
    methods = make_methods(suite)
    progress = Progress(suite, methods, {})
    progress.chosen = {name for name in methods if fnmatchcase(name, options.only)}
    if not progress.chosen:
        raise UserError(f"--only {options.only}: is none of the methods; there are {', '.join(methods)}")
    expected = forecast(progress)
    for line in expected.lines():
        _say(line)
    if options.dry_run:
        _say("\n".join(expected.listing))
        return 0
    _require_corpus(next(iter(methods.values())))
    folder = Path(suite.suite.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"suite.dir: {folder} cannot be made ({error.strerror}); choose another") from None
    try:
        lock = FolderLock(folder, f"the comparison in {folder}")
    except UserError as error:
        raise UserError(str(error).replace("run.dir:", "suite.dir:")) from None
    except OSError as error:
        raise UserError(f"suite.dir: {folder} cannot be written ({error.strerror}); choose another") from None
    try:
        status = _run_all(progress, expected, places(options.jobs, options.gpus))
        if status != KILLED:
            for path in write_comparison(progress, folder):
                _say(path)
            for line in _remarks(progress):
                _say(line)
    except OSError as error:
        place, why = error.filename or folder, error.strerror or error
        raise RunFailed(f"suite.dir: {place}: {why}; once that is mended, the same command goes on from here") from None
    finally:
        lock.release()
    return status


def _run_all(progress: Progress, expected: Forecast, where: Sequence[dict[str, str]]) -> int:
    """Run stage after stage until nothing is wanted; the exit status."""
    runs = _missing(progress)
    with Pool(where, _begins) as pool:
        _await_ending(runs, pool)
        while runs:
            for ended in pool.run(runs):
                outcome = _ends(ended, stopped=bool(pool.stopped))
                if outcome is not None:
                    progress.outcomes[ended.run.folder] = outcome
                    progress.tried.add(ended.run.folder)
                    _say(expected.line(progress, ended, outcome, pool.size))
            if pool.stopped:
                return pool.stopped
            if runs := _missing(progress):
                write_comparison(progress, Path(progress.suite.suite.dir))
    return 1 if _bad(progress) or progress.refused else 0


def _await_ending(runs: Sequence[Run], pool: Pool) -> None:
    """Wait for runs of a command that was killed: they end with it, but not before their checkpoint is committed.

    Each of them would refuse a second process in its folder, as if it had failed.
    """
    for run in runs:
        store, began, told = CheckpointStore(run.folder), time.monotonic(), False
        ending = read_json(run.folder / NOTE).get("status") == "running"
        while ending and not pool.stopped:
            try:
                store.lock()
            except UserError:
                if time.monotonic() - began > PATIENCE_S:
                    raise
                if not told:
                    _say(f"{run.words}  waits for an earlier process of this run, which is still ending")
                told = True
                time.sleep(LOOK_S)
            else:
                store.unlock()
                break


def _say(line: object) -> None:
    """Print a line; the runs go on where nobody reads it any more."""
    print(line, file=Output(), flush=True)


def _bad(progress: Progress) -> list[Run]:
    """Runs that have failed or diverged, of the methods that this command runs."""
    chosen = (run for run in progress.named() if run.method in progress.chosen)
    return [run for run in chosen if (o := progress.outcomes.get(run.folder)) and o.status != "done"]


def _remarks(progress: Progress) -> Iterator[str]:
    """What to say at the end."""
    if left := len(progress.wanted()):
        yield f"stopped with {left} runs known to be left; the same command goes on from here"
    if bad := len(_bad(progress)):
        yield f"{bad} runs have failed or diverged; table.md says why"
    baseline = progress.suite.suite.baseline
    method = progress.methods[baseline]
    to_come = baseline in progress.chosen and not all(map(progress.has_ended, progress.tuning(method)))
    if "flops" in progress.suite.suite.equal and not to_come and progress.best(method) is None:
        yield f"there are no runs at equal FLOPs without a run of {baseline}, the baseline"


def _missing(progress: Progress) -> list[Run]:
    """The runs that are wanted, once all that have ended already are known. UserError where a run is another one."""
    while True:
        unknown = [run for run in progress.named() if run.folder not in progress.outcomes]
        for run in unknown:
            require_same(run)
            if outcome := read_outcome(run):
                progress.outcomes[run.folder] = outcome
        if not any(run.folder in progress.outcomes for run in unknown):
            return progress.wanted()


def _begins(run: Run) -> None:
    """Note by what a run is made."""
    seconds = read_json(run.folder / NOTE).get("seconds", 0.0)
    replace_text(run.folder / NOTE, json.dumps({"status": "running", "seconds": seconds, **here()}, indent=1) + "\n")


def _ends(ended: Ended, stopped: bool) -> Outcome | None:
    """What became of a run, noted; None of one that has been stopped with this command."""
    path = ended.run.folder / NOTE
    note = read_json(path)
    note["seconds"] = round(note.get("seconds", 0.0) + ended.seconds, 3)
    if ended.status == 0:
        note["status"] = "ended"
    elif stopped:
        note["status"] = "stopped"
    else:
        note |= {"status": "failed", "reason": ended.reason}
    replace_text(path, json.dumps(note, indent=1) + "\n")
    outcome = read_outcome(ended.run)
    if outcome is None and ended.status == 0:
        outcome = Outcome("failed", "it ended without a summary.json of its last step", note=note)
    return outcome


def _require_corpus(method: Method) -> None:
    """UserError where the corpus, which all methods share, cannot be used."""
    dataset = open_dataset(method.config, "train")
    open_dataset(method.config, "val")
    require_vocabulary(dataset, method.config)
    dataset.require_rows(method.config.train.global_batch_size)
