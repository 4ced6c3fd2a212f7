"""One training by several processes, one per GPU, as `torchrun` starts them: torch's DistributedDataParallel.

Every process holds the whole network, takes its slice of each batch, mixes it and computes its loss alone; torch
averages the gradients, each process counting the same (Li et al. 2020, arXiv 2006.15704). The first process computes
whatever is not training, writes and prints; the others follow it through the training and end.

With one process every function here does what it says for that one, and costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from manihot import progress
from manihot.errors import ManihotError, SettingsError
from manihot.train.runners import choose_device

T = TypeVar("T")
SEED_OF_PROCESS = 15_485_863  # added to a seed, times the process's number
PATIENCE = timedelta(hours=1)  # that a process waits for the others; torchrun ends all where one of them is gone


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that torchrun started; yields the device of this one.

    device: as for `choose_device`; `cuda` is the GPU of the local rank. Raises SettingsError where there are fewer
    GPUs than processes, ManihotError where another process ended.
    """
    place = _device(choose_device(device))
    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise SettingsError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and no others were found ({str(error).splitlines()[0]})",
            "start all of them with one torchrun, or unset WORLD_SIZE to train with one process",
        ) from error
    if rank():
        progress.fall_silent()
    try:
        yield place
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # neither gloo nor NCCL has errors of its own
        if not any(word in str(error) for word in ("gloo", "NCCL", "Connection", "connection", "Broken pipe")):
            raise
        raise ManihotError(
            f"another process of this training is gone ({str(error).splitlines()[0]})",
            "see what it said, and run again to resume",
        ) from error
    finally:
        dist.destroy_process_group()


def _device(chosen: torch.device) -> torch.device:
    """The local rank's own device of the chosen kind."""
    if chosen.type == "cpu":
        return chosen
    if chosen.type != "cuda":
        raise SettingsError(f"several processes can't train on {chosen}", "use --device cpu, or a machine with GPUs")
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise SettingsError(
            f"process {local + 1} on this machine has no GPU: there are {count}",
            f"start torchrun with --nproc-per-node {max(1, count)}, or train with --device cpu",
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, for all; it must be picklable. The others wait for it."""
    if world() == 1:
        return work()
    said: list[Any] = [None if rank() else work()]
    dist.broadcast_object_list(said, 0)
    found: T = said[0]
    return found


def gather(value: T) -> list[T]:
    """What every process holds, in the order of their numbers; it must be picklable."""
    everyone: list[Any] = [value] * world()
    if world() > 1:
        dist.all_gather_object(everyone, value)
    return everyone


def by_parts(rows: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`predict(rows)`, an array with a row for each, of which every process computes a part and gets the whole."""
    if len(rows) < world():
        return predict(rows)
    return np.concatenate(gather(predict(np.array_split(rows, world())[rank()])))


@torch.no_grad()
def take_buffers(network: nn.Module) -> None:
    """Give the network the running statistics of norms that the first process has."""
    for buffer in network.buffers() if world() > 1 else ():
        dist.broadcast(buffer, 0)


class WholeStep(nn.Module):
    """A step as a module, so that torch averages its gradients however often it calls the network."""

    def __init__(self, step: Callable[..., Any], model: nn.Module) -> None:
        super().__init__()
        self.step, self.model = step, model

    def forward(self, *batch_and_state: Any) -> Any:
        """The step's result for this process's slice of a batch."""
        return self.step(self.model, *batch_and_state)


def share_step(step: Callable[..., Any], model: nn.Module, state: Any) -> Callable[..., Any]:
    """The step as all processes take it together; within `state.no_sync` gradients wait for the next call outside.

    SettingsError for a loss that they can't compute apart.
    """
    if world() == 1:
        return step
    if state.loss.state_dict():
        raise SettingsError(
            "loss: it remembers photographs from epoch to epoch, which several processes don't share",
            "train it in one process, or choose another loss",
        )
    shared = DistributedDataParallel(WholeStep(step, model), find_unused_parameters=True)
    state.no_sync = shared.no_sync
    return lambda model, batch, state: shared(batch, state)
