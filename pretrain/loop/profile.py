"""`train.profile`: a trace of a few steps for Perfetto or chrome://tracing, and a table of the slowest operations."""

import json
import os
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from pretrain.config.tables import WARM_UP_STEPS
from pretrain.loop.optional import reason
from pretrain.loop.run import Run
from pretrain.machine.files import replace_text

TRACE, TABLE, FIGURES = "trace-rank0.json.gz", "operations.txt", "operations.json"
LISTED = 40
"""Operations in the table for people; the JSON has all."""


class Profile:
    """Records `train.profile` steps of rank 0 into the run's folder `profile`, after WARM_UP_STEPS of this process.

    Whatever goes wrong costs the profile and no step. What it records takes longer than it would otherwise, so the
    run's speed leaves these steps out.
    """

    def __init__(self, run: Run):
        self._run, self._wanted = run, run.config.train.profile if run.world.is_main else 0
        self._folder = run.dir / "profile"
        self._made, self._recorded = 0, 0
        self._profiler: Any = None

    @property
    def on(self) -> bool:
        """Whether the profiler is at work: it has been started, one step before the first that it records."""
        return self._profiler is not None

    def before_step(self) -> None:
        if self._wanted and self._made == WARM_UP_STEPS - 1:
            self._attempt(self._start)

    def after_step(self) -> None:
        self._made += 1
        if self.on:
            self._attempt(self._next)

    def close(self) -> None:
        """Write what has been recorded, where the run ends in the middle of it."""
        if self._wanted and not self.on:
            made = f"made {self._made} steps, and the first {WARM_UP_STEPS} are not recorded"
            self._run.console.say(f"no profile: this process {made}")
        elif self.on:
            self._attempt(self._finish)

    def _attempt(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._run.console.say(f"profile not made ({reason(error)}); training goes on")
            self._profiler, self._wanted = None, 0

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._run.world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        # Its own warm-up, a step that is not kept, pays for what starting costs.
        plan = schedule(wait=0, warmup=1, active=self._wanted, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profiler.start()

    def _next(self) -> None:
        self._recorded = self._made - WARM_UP_STEPS
        self._profiler.step()
        if self._recorded == self._wanted:
            self._finish()

    def _finish(self) -> None:
        profiler, self._profiler, self._wanted = self._profiler, None, 0
        profiler.stop()

    def _write(self, profiler: profile) -> None:
        if not self._recorded:
            return
        self._folder.mkdir(exist_ok=True)
        temporary = self._folder / f"tmp-{TRACE}"
        try:
            profiler.export_chrome_trace(str(temporary))
            os.replace(temporary, self._folder / TRACE)
        finally:
            temporary.unlink(missing_ok=True)
        rows = operations(profiler, self._recorded)
        replace_text(self._folder / FIGURES, json.dumps({"steps": self._recorded, "operations": rows}, indent=1) + "\n")
        replace_text(self._folder / TABLE, table(rows, self._recorded))
        self._run.console.say(f"profile of {self._recorded} steps: {self._folder}/{TABLE}, {TRACE}")


def operations(profiler: profile, steps: int) -> list[dict[str, Any]]:
    """One entry per operation and per GPU kernel, the slowest first; milliseconds and calls are those of one step.

    `share` is that of the device's time, or without a GPU of the CPU's: time in the operation itself, not in those it
    calls. A step's time on the CPU outside of all operations, Python's and waiting, is an entry of its own.
    """
    events = profiler.key_averages()
    on_device = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    device_total = sum(e.self_device_time_total for e in on_device)
    total = device_total or sum(e.self_cpu_time_total for e in events)
    rows = []
    for event in events:
        outside = event.key.startswith("ProfilerStep")
        if event.is_user_annotation and event.device_type != DeviceType.CPU:
            continue  # the same span once more, as the GPU sees it
        cpu, device = event.self_cpu_time_total, 0.0 if outside else event.self_device_time_total
        slow = device if device_total else cpu
        rows.append(
            {
                "name": "(outside of operations)" if outside else event.key,
                "calls": event.count / steps,
                "cpu_ms": cpu / 1000 / steps,
                "device_ms": device / 1000 / steps,
                "share": slow / total if total else 0.0,
            }
        )
    return sorted(rows, key=lambda row: (-row["share"], -row["cpu_ms"], row["name"]))


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """The slowest operations as text, a line each."""
    lines = [
        f"{steps} steps; calls and milliseconds are of one step, in an operation itself and not in those it calls",
        f"{'share':>7} {'CPU ms':>10} {'device ms':>10} {'calls':>9}  operation",
    ]
    lines += [
        f"{row['share']:>7.1%} {row['cpu_ms']:>10.3f} {row['device_ms']:>10.3f} {row['calls']:>9.1f}  {row['name']:.99}"
        for row in rows[:LISTED]
    ]
    return "\n".join(lines) + "\n"
