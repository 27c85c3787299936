"""A mirror of a run's figures and samples in Weights & Biases, for `metrics.wandb`; imported by nothing else.

Everything that wandb does, it does in a thread of its own that training never waits for: a network that is gone, a
server that does not answer or an error of wandb's cost the mirror and no step. metrics.jsonl has everything anyway.

wandb counts steps by itself, from 0 in every new folder of an offline run; so each figure goes with the run's own step,
which is declared the axis of all, and the run's identity is the one in run.json, the same after a resume. Offline
(WANDB_MODE=offline) each `train` leaves a folder of its own of that identity, which `wandb sync --id ID` joins.
"""

import atexit
import html
import importlib.util
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import UserError
from pretrain.loop.optional import reason

MOST_WAITING = 10_000
"""Logged steps and texts that wait for wandb at most; what comes when there are so many is left out."""
CLOSE_S = 60.0
"""Seconds that the end of a run waits for wandb to send the rest."""


def require_wandb(project: str) -> None:
    """UserError where a mirror is asked for and wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f'metrics.wandb = "{project}" needs the package wandb, which is not installed: pip install wandb, or set '
            'metrics.wandb = ""'
        )


class Mirror:
    """Sends what it is given to wandb as the run `run_id` of `project`; `say` is told where that does not work."""

    def __init__(self, project: str, run_dir: Path, run_id: str, settings: dict[str, Any], say: Callable[[str], None]):
        self._init = {"project": project, "dir": str(run_dir), "id": run_id, "name": run_dir.name, "config": settings}
        self._say = say
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What the thread has to say, which the training thread says: the console is the latter's."""
        self._waiting: queue.Queue[Callable[[Any, Any], None] | None] = queue.Queue(MOST_WAITING)
        self._lost = 0
        self._hooks: list[Callable[..., Any]] = []
        """What wandb would do when the process ends."""
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def put(self, step: int, figures: dict[str, float]) -> None:
        """Take the figures of a step; never waits."""
        self._put(lambda wandb, run: run.log({"step": step, **figures}))

    def put_sample(self, step: int, prompt: str, text: str) -> None:
        """Take a text that the model has written; never waits."""
        page = f"<pre>{html.escape(text)}</pre>"
        self._put(lambda wandb, run: run.log({"step": step, f"samples/{prompt.strip()}": wandb.Html(page)}))

    def close(self, summary: dict[str, Any]) -> None:
        """Give the run its `summary`, and wait CLOSE_S at most until wandb has everything."""
        self._put(lambda wandb, run: run.summary.update(summary))
        try:
            self._waiting.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._told.put(f"wandb has not finished in {CLOSE_S:.0f} s; the run ends without it")
            for hook in self._hooks:  # in which it would wait for the same
                atexit.unregister(hook)
        if self._lost:
            self._told.put(f"wandb was too slow for {self._lost} of its records, which it lacks")
        self._tell()

    def _put(self, work: Callable[[Any, Any], None]) -> None:
        self._tell()
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self._lost += 1

    def _tell(self) -> None:
        while not self._told.empty():
            self._say(self._told.get())

    def _work(self) -> None:
        """The thread: begin, send what comes, finish. After an error it only takes what comes."""
        wandb, run = self._begin()
        while (work := self._waiting.get()) is not None:
            if run is None:
                continue
            try:
                work(wandb, run)
            except Exception as error:
                self._told.put(f"wandb failed ({reason(error)}); training goes on without it")
                run = None
        if run is not None:
            try:
                run.finish()
            except Exception as error:
                self._told.put(f"wandb has not finished ({reason(error)})")

    def _begin(self) -> tuple[Any, Any]:
        try:
            with _exit_hooks(self._hooks):
                import wandb

                # Its capture of what is printed would stand between the run and its console.
                options = wandb.Settings(console="off", silent=True)
                run = wandb.init(**self._init, resume="allow", settings=options)
            run.define_metric("step", hidden=True)
            run.define_metric("*", step_metric="step")
            self._told.put(f"wandb: {run.dir if run.offline else run.url}")
            return wandb, run
        except Exception as error:
            self._told.put(f"wandb cannot be begun ({reason(error)}); training goes on without it")
            return None, None


@contextmanager
def _exit_hooks(found: list[Callable[..., Any]]) -> Iterator[None]:
    """Let `found` have what this thread registers to be called when the process ends."""
    register, thread = atexit.register, threading.get_ident()

    def listed(hook: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
        if threading.get_ident() == thread:
            found.append(hook)
        return register(hook, *arguments, **options)

    atexit.register = listed  # type: ignore[assignment]
    try:
        yield
    finally:
        atexit.register = register
