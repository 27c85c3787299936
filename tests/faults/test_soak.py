"""Runs that are disturbed all the time, by one seed, and end as if nothing had happened; what a long run holds on to.

SPARLOW_TEST_SEED chooses what happens when; the seed is printed.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import Process
from support import logged, tensor_hashes, write_tiny

SMALL = [
    "--model.n_layers=1",
    "--model.dim=16",
    "--model.n_heads=1",
    "--model.ffn_dim=24",
    "--train.micro_batch_size=2",
    "--train.global_batch_size=2",
    "--checkpoint.every=25",
    "--checkpoint.keep=3",
]
"""A step takes some milliseconds, a start two thirds of a second."""

GALORE = ["--linear.name=dense", "--optimizer.name=galore_adamw8bit", "--optimizer.rank=4"]
GALORE += ["--optimizer.update_proj_gap=40"]

ENDINGS = (0, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)


def start(command: list[str], run: Path) -> Process:
    """Start `sparlow` with `command`; it writes to a file, as a pipe that nobody reads would stop it."""
    with run.with_suffix(".log").open("ab") as log:
        return Process("-m", "pretrain", *command, f"--run.dir={run}", stdout=log.fileno())


def said(run: Path) -> str:
    """The end of what the processes of `run` have written."""
    return run.with_suffix(".log").read_text()[-4000:]


@dataclass
class Disturber:
    """Starts the same command again and again, and each time does something to it, or to what it has left."""

    command: list[str]
    run: Path
    rng: random.Random
    kinds: tuple[str, ...]

    def live(self) -> int:
        """One life, which ends by what `rng` chooses; the exit status."""
        process = start(self.command, self.run)
        kind = self.rng.choice(self.kinds)
        starts = self.rng.random() < 0.2  # struck before its first step
        steps = logged_steps(self.run) + self.rng.randint(5, 120)
        while not starts and logged_steps(self.run) < steps and process.poll() is None:
            time.sleep(0.005)
        time.sleep(self.rng.uniform(0, 0.6 if starts else 0.1))
        if kind in ("term", "signals"):
            process.terminate()
            if kind == "signals":
                time.sleep(self.rng.uniform(0, 0.1))
                process.send_signal(self.rng.choice((signal.SIGTERM, signal.SIGINT)))
        else:
            process.kill()
        assert process.wait(120) in ENDINGS, said(self.run)
        if kind == "flip":
            self.flip()
        return process.wait()

    def flip(self) -> None:
        """Flip a bit of the newest checkpoint, where the one before is good."""
        folders = sorted((self.run / "checkpoints").glob("step-????????"))
        if len(folders) < 2:
            return
        path = self.rng.choice(sorted(folders[-1].iterdir()))
        data = bytearray(path.read_bytes())
        bit = self.rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        print(f"flipped bit {bit} of {path.name} of {folders[-1].name}")


def logged_steps(run: Path) -> int:
    """The steps in metrics.jsonl, which a resume may take back."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b'"train/loss"')
    except OSError:
        return 0


@dataclass
class Held:
    """What a process holds on to at a moment."""

    step: int
    resident: int
    """MB."""
    files: int


def watched(process: Process, run: Path) -> Iterator[Held]:
    """Look at a process again and again while it lives."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) // 1024
            yield Held(logged_steps(run), resident, len(os.listdir(f"/proc/{process.pid}/fd")))
        except (OSError, IndexError):  # it has just ended
            pass
        time.sleep(0.01)


def require_flat(held: list[Held], first: int, last: int) -> None:
    """Memory grows by less than 20 MB from `first` to `last`, and open files not at all."""
    early = [each for each in held if first <= each.step < first + (last - first) // 4]
    late = [each for each in held if last - (last - first) // 4 <= each.step < last]
    assert len(early) > 5
    assert len(late) > 5
    assert max(each.resident for each in late) - max(each.resident for each in early) < 20
    # A file that is being written is open for a moment.
    assert min(each.files for each in late) == min(each.files for each in early)


@pytest.mark.slow
@pytest.mark.fault("F32")
def test_500_steps_leave_memory_and_open_files_flat(corpus, tmp_path):
    command = ["train", str(write_tiny(tmp_path, corpus)), *SMALL, "--schedule.total_steps=500"]
    process = start(command, tmp_path / "run")
    held = list(watched(process, tmp_path / "run"))
    assert process.wait() == 0, said(tmp_path / "run")
    require_flat(held, 100, 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "kinds", "options"),
    [
        pytest.param(600, ("kill",), GALORE, id="30_kills", marks=pytest.mark.fault("F4")),
        pytest.param(
            2000,
            ("kill", "term", "signals", "flip"),
            [],
            id="everything",
            marks=pytest.mark.fault("F4", "F5", "F14", "F32"),
        ),
    ],
)
def test_a_run_that_is_disturbed_all_the_time_ends_the_same(corpus, tmp_path, steps, kinds, options):
    seed = int(os.environ.get("SPARLOW_TEST_SEED", "0"))
    print(f"SPARLOW_TEST_SEED={seed}")
    config, rng = write_tiny(tmp_path, corpus), random.Random(seed)
    command = ["train", str(config), *SMALL, *options, f"--schedule.total_steps={steps}"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    calm = start([*command, "--checkpoint.every=1000"], straight)
    disturber, statuses = Disturber(command, run, rng, kinds), []
    while logged_steps(run) < 0.7 * steps if kinds != ("kill",) else len(statuses) < 30:
        statuses.append(disturber.live())
        assert len(statuses) < 200
    assert statuses.count(-signal.SIGKILL) >= 10
    last = start(command, run)
    begun = logged_steps(run)
    held = list(watched(last, run))
    assert last.wait() == 0, said(run)
    assert calm.wait() == 0, said(straight)
    assert tensor_hashes(run, steps) == tensor_hashes(straight, steps)
    assert logged(run) == logged(straight)
    if kinds != ("kill",):
        require_flat(held, begun + 100, steps)
