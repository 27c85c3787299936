"""Starting processes: one of `sparlow`, or a world of them, in a fraction of the time that Python takes to begin.

A process spends four seconds on imports before its first step. So one, started here at the first need, imports what
training imports and then forks: a fork sets its environment, folder and output, runs a module or script as `python`
would, and leaves the interpreter as it would. What decides something during an import is what it was at the start.
`torchrun` is the real launcher, for the tests that need it.
"""

import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from support import ROOT, freeze_imports

from pretrain.machine.fault import POINTS

WIDTH = 16
"""Digits of a number that a process is told by."""
WORLD = str(Path(__file__).with_name("world.py"))

TRAINING = ("torch._dynamo", "torch.distributed.nn", "deepspeed", "pretrain.loop.train", "rich.console")
INTERPRETING = ("pytest", "torch", "triton.language")


class Process:
    """A fork that runs `python ARGUMENTS`; as subprocess.Popen, with stderr in stdout unless it goes elsewhere."""

    def __init__(
        self, *arguments: str, stdout: int | None = None, stderr: int | None = None, **environment: str
    ) -> None:
        self.stdout, written = None, stdout
        if written is None:
            read, written = os.pipe()
            self.stdout = open(read, errors="replace")  # noqa: SIM115 - the test reads it
        self._told, telling = os.pipe()
        for fault in environment.get("SPARLOW_FAULT", "").split(","):
            assert fault.partition("/")[0].partition(":")[0] in ("", *POINTS), f"no such fault point: {fault}"
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        message = json.dumps({"arguments": arguments, "environment": variables}).encode()
        server = _server(environment.get("TRITON_INTERPRET") == "1")
        server.sendall(len(message).to_bytes(4, "big"))
        socket.send_fds(server, [message], [written, written if stderr is None else stderr, telling])
        os.close(telling)
        if stdout is None:
            os.close(written)
        self.pid = int(os.read(self._told, WIDTH))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, minus the signal's number where one ended it; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = int(os.read(self._told, WIDTH))
            os.close(self._told)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """All of its output, once it has ended."""
        assert self.stdout is not None
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(self.stdout.read()), daemon=True)
        reader.start()
        self.wait(timeout)
        reader.join(timeout)
        return "".join(output), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_command(*arguments: str, fault: str = "", **environment: str) -> Process:
    """Start `python -m pretrain …`."""
    return Process("-m", "pretrain", *arguments, SPARLOW_FAULT=fault, **environment)


def run_command(*arguments: str, fault: str = "", **environment: str) -> tuple[int, str]:
    """Run `python -m pretrain …`: (exit status, output)."""
    process = start_command(*arguments, fault=fault, **environment)
    output, _ = process.communicate()
    return process.returncode, output


def wait_until(process: Process | subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Until `condition` holds, while the process runs; two minutes at most."""
    for _ in range(2400):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("not within two minutes")


def wait_for_step(process: Process | subprocess.Popen[str], metrics: Path) -> None:
    """Until the first step has been logged."""
    wait_until(process, lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_world(size: int, *arguments: str, stdout: int | None = None, **environment: str) -> list[Process]:
    """Start `python ARGUMENTS` as each rank of a world."""
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} | environment
    return [Process(*arguments, stdout=stdout, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(size)]


def run_world(size: int, *arguments: str, **environment: str) -> str:
    """Run a world whose ranks must all end well, and kill the others where one does not; the output of all."""
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        ranks = start_world(size, *arguments, stdout=file.fileno(), **environment)
        deadline = time.monotonic() + 500
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks) or time.monotonic() > deadline:
                for rank in ranks:
                    rank.kill()
            time.sleep(0.02)
        file.seek(0)
        output = file.read()
    assert [rank.returncode for rank in ranks] == [0] * size, output[-8000:]
    return output


def train_world(size: int, config: Path, runs: Iterable[list[str]]) -> str:
    """Train runs of `config`, each with its options, one after the other in one world; the output."""
    return run_world(size, WORLD, str(config), json.dumps(list(runs)))


def torchrun(
    size: int, *arguments: str, launcher: Iterable[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `torchrun` itself, with the options `launcher`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size), *launcher]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@functools.cache
def _server(interpreted: bool) -> socket.socket:
    """The connection to the process that forks, or to one whose kernels Triton interprets; it ends with this one."""
    ours, theirs = socket.socketpair()
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": str(int(interpreted))}
    env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the other way to ask for a GPU spoils CUDA for forks
    command, fd = [sys.executable, __file__, str(theirs.fileno())], theirs.fileno()
    subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[fd])
    theirs.close()
    return ours


def _serve(connection: socket.socket) -> list[str] | None:
    """The arguments of a process, in the fork that is to be it; None where nobody asks any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while size := connection.recv(4, socket.MSG_WAITALL):
        message, fds, _, _ = socket.recv_fds(connection, int.from_bytes(size, "big"), 3, socket.MSG_WAITALL)
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
            signal.signal(signal.SIGINT, signal.default_int_handler)  # also where they run in a shell's background
            connection.close()
            return _become(json.loads(message), *fds)
        for fd in fds:
            os.close(fd)
    return None


def _become(message: dict[str, Any], stdout: int, stderr: int, telling: int) -> list[str]:
    """Fork once more: the child becomes the process, and this one stays to tell its number and how it ended."""
    child = os.fork()
    if child:
        os.close(stdout)
        os.close(stderr) if stderr != stdout else None
        os.write(telling, f"{child:{WIDTH}}".encode())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(telling, f"{status:{WIDTH}}".encode())
        os._exit(0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in {stdout, stderr, telling}:
        os.close(fd)
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(ROOT)
    return message["arguments"]


def _main() -> None:
    for name in TRAINING if os.environ["TRITON_INTERPRET"] == "0" else INTERPRETING:
        importlib.import_module(name)
    freeze_imports()
    arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is None:
        return
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main()
