"""Processes: who this one is, and how all of them agree before anything irreversible happens."""

import gc
import logging
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from model.errors import RunFailed, UserError
from pretrain.machine import stop
from pretrain.machine.lone_failure import fail, lost_connection, sentence
from pretrain.machine.watch import Watch

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

EXCHANGE_TIMEOUT = timedelta(hours=1)
"""How long an exchange may wait: rank 0 may read a large checkpoint twice meanwhile. The watch sees a dead rank long
before."""
SILENCE_S = 300.0
"""How long a process may give no sign of life where no configuration says (parallel.timeout_minutes)."""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start() -> World:
    """Join the process group that the launcher describes; without a launcher, a group of one that opens no port."""
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} GPUs, too few for process {local_rank + 1}; "
                "start at most one process per GPU (NPROC, --nproc_per_node or --num_gpus)"
            )
        torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if not dist.is_initialized():
        # Functions of both keep the process group of the moment of their import as a default argument. Now it is none.
        import_module("torch.distributed.nn")
        import_deepspeed()
        backend = "nccl" if cuda else "gloo"
        if "RANK" in os.environ:
            store, rank, size = _rendezvous()
            own = dist.PrefixStore(_attempt(), store)
            dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=EXCHANGE_TIMEOUT)
        else:
            try:
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            except RuntimeError as error:
                if "interface" not in str(error):
                    raise
                sentence = "torch.distributed finds no loopback interface; bring it up: ip link set lo up"
                raise UserError(sentence) from None
    return World(dist.get_rank(), dist.get_world_size(), device)


def _rendezvous() -> tuple[dist.Store, int, int]:
    """The store, rank and size that the launcher's variables describe; UserError where its port is taken."""
    try:
        return next(dist.rendezvous("env://", timeout=EXCHANGE_TIMEOUT))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT")
        sentence = f"port {port} is in use on this machine, perhaps by another run; choose another one with MASTER_PORT"
        raise UserError(sentence) from None


def _attempt() -> str:
    """What sets the keys of this start in the launcher's store apart.

    With --max-restarts, torchrun of torch 2.13 hands the restarted processes the store of the dead ones, with their
    addresses in it. Where it spans several machines, each counts restarts for itself: there the variable
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes it begin a new store.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else "0"
    return f"start/{restarts}"


@contextmanager
def processes(silence_s: float = SILENCE_S) -> Iterator[World]:
    """`start`, and at the end leave the process group again, if it was not there before.

    An error of one rank alone ends all processes here. A rank that gives no sign of life for `silence_s` seconds does
    so too.
    """
    was_there = dist.is_initialized()
    world = start()
    watch = Watch(world.rank, world.size, silence_s) if world.size > 1 else None
    try:
        yield world
        if watch:
            dist.barrier()  # nobody takes the group apart while another is still in it
    except Exception as error:
        if watch and not getattr(error, "on_all_ranks", False):
            fail(watch, error)
        if watch:
            raise _told_by_rank(world, error) from error
        raise
    except SystemExit as end:  # of a signal
        if watch:
            stop.end(None, int(end.code or 0))
        raise
    finally:
        if watch:
            watch.close()
        if dist.is_initialized() and not was_there:
            _leave()


def _told_by_rank(world: World, error: Exception) -> Exception:
    """An error that all ranks raise, with the rank where it happened in its sentence; the first one's needs none.

    A program error keeps its traceback, on that rank alone.
    """
    rank = getattr(error, "rank", 0)
    if not isinstance(error, UserError | RunFailed):
        if rank == world.rank:
            traceback.print_exception(error)
        return shared(RunFailed(f"process {rank}: {sentence(error)}"))
    kind = UserError if isinstance(error, UserError) else RunFailed
    return shared(kind(f"process {rank}: {error}")) if rank else error


def _leave() -> None:
    """Take the process group apart, and with it gloo's threads.

    Such a thread may still hold the tensors of a collective that all others have long left. If it lets go of them while
    the interpreter shuts down, the process aborts, after a run that ended well. The threads end with the last reference
    to their group; DeepSpeed, once started, holds some that it alone can let go.
    """
    comm = import_module("deepspeed.comm.comm")
    (comm if comm.cdb is not None else dist).destroy_process_group()
    gc.collect()  # an engine that an error left behind holds groups as well


def _outcome(work: Callable[[], Any]) -> list[Any]:
    """What `work` returns, and the error that it ends with; one of them is None."""
    try:
        return [work(), None]
    except Exception as error:
        return [None, error]


class LostConnection(RunFailed):
    """An exchange failed because another process is gone."""


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if lost_connection(error):
            raise LostConnection(str(error)) from error
        raise


def on_main(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and hand its result to all; an error there is raised on every rank, so nobody waits."""
    outcome: list[Any] = _outcome(work) if world.is_main else [None, None]
    error = outcome[1]
    if world.size > 1:
        outcome[1] = portable(error)
        with _exchange():
            dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise shared(outcome[1]) from error
    return outcome[0]


def gather_outcomes(world: World, value: T, error: Exception | None = None) -> list[T]:
    """Every rank's `value` in rank order; when any rank brings an error, all raise the first one."""
    outcomes: list[Any] = [(value, error)]
    if world.size > 1:
        outcomes = [None] * world.size
        with _exchange():
            dist.all_gather_object(outcomes, (value, portable(error)))
    for rank, (_, failed) in enumerate(outcomes):
        if failed is not None:
            raise shared(failed, rank) from (error if rank == world.rank and failed is not error else None)
    return [value for value, _ in outcomes]


def portable(error: Exception | None) -> Exception | None:
    """The error as another process can read it: one that cannot be pickled and read again becomes a RunFailed."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        assert error is not None
        return RunFailed(sentence(error))
    return error


def together(world: World, work: Callable[[], T]) -> T:
    """Run `work` on every rank; when it fails on one, all raise that error."""
    value, failed = _outcome(work)
    gather_outcomes(world, None, failed)
    return value


def of_main(world: World, work: Callable[[], T]) -> T:
    """Run `work` on every rank and hand rank 0's result to all; when it fails on one, all raise that error."""
    value, failed = _outcome(work)
    results: list[Any] = gather_outcomes(world, value if world.is_main else None, failed)
    return results[0]


def shared(error: E, rank: int = 0) -> E:
    """Mark an error that every rank raises, so that one of them prints it; `rank` is where it happened."""
    error.on_all_ranks, error.rank = True, rank  # type: ignore[attr-defined]
    return error


def sum_over_ranks(world: World, *values: float) -> list[float]:
    """Element-wise sums over all ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=world.device)
    if world.size > 1:
        with _exchange():
            dist.all_reduce(total)
    return total.tolist()


def require_divisible(global_batch_size: int, micro_batch_size: int, processes: int) -> int:
    """Gradient accumulation steps per rank; UserError when the batch does not divide over the processes."""
    micro_batches = global_batch_size // micro_batch_size
    if micro_batches % processes:
        raise UserError(
            f"train.global_batch_size {global_batch_size} makes {micro_batches} micro-batches of "
            f"{micro_batch_size}, which do not divide over {processes} processes; change one of the two"
        )
    return micro_batches // processes


def import_deepspeed() -> Any:
    """The deepspeed module, with the accelerator set for this machine."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        from deepspeed.accelerator import get_accelerator, set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        class QuietCPU(CPU_Accelerator):
            def create_op_builder(self, class_name: str) -> Any:
                return None if class_name == "ShareMemCommBuilder" else super().create_op_builder(class_name)

        if type(get_accelerator()).__name__ != "QuietCPU":
            set_accelerator(QuietCPU())
    return deepspeed
