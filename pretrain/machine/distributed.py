"""Processes: who this one is, and how all of them agree before anything irreversible happens."""

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from model.errors import UserError
from pretrain.machine.lone_failure import fail, watch

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


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
            # Rank 0 may read a large checkpoint twice while the others wait.
            dist.init_process_group(backend, timeout=timedelta(hours=1))
        else:
            try:
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            except RuntimeError as error:
                if "interface" not in str(error):
                    raise
                sentence = "torch.distributed finds no loopback interface; bring it up: ip link set lo up"
                raise UserError(sentence) from None
    return World(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def processes() -> Iterator[World]:
    """`start`, and at the end leave the process group again, if it was not there before.

    An error of this rank alone ends the process here, and with it the job.
    """
    was_there = dist.is_initialized()
    world = start()
    stop_watch = watch(world.rank) if world.size > 1 else None
    try:
        yield world
        if world.size > 1:
            dist.barrier()  # nobody takes the group apart while another is still in it
    except Exception as error:
        if world.size > 1 and not getattr(error, "on_all_ranks", False):
            fail(world.rank, error)
        raise
    finally:
        if stop_watch:
            stop_watch()
        if dist.is_initialized() and not was_there:
            _leave()


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


def on_main(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and hand its result to all; an error there is raised on every rank, so nobody waits."""
    outcome: list[Any] = _outcome(work) if world.is_main else [None, None]
    if world.size > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise shared(outcome[1])
    return outcome[0]


def gather_outcomes(world: World, value: T, error: Exception | None = None) -> list[T]:
    """Every rank's `value` in rank order; when any rank brings an error, all raise the first one."""
    outcomes: list[Any] = [(value, error)]
    if world.size > 1:
        outcomes = [None] * world.size
        dist.all_gather_object(outcomes, (value, error))
    for _, failed in outcomes:
        if failed is not None:
            raise shared(failed)
    return [value for value, _ in outcomes]


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


def shared(error: E) -> E:
    """Mark an error that every rank raises, so that one of them prints it."""
    error.on_all_ranks = True  # type: ignore[attr-defined]
    return error


def sum_over_ranks(world: World, *values: float) -> list[float]:
    """Element-wise sums over all ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=world.device)
    if world.size > 1:
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
