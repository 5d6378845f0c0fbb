"""One process or several: PyTorch's own distributed engine, as ``torchrun`` starts it.

Every function also works in a single process, where it has nothing to do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from faceedit.errors import UsageError

_BUCKET = 1 << 24  # elements of gradient that are summed at a time
# Longer than any evaluation: only the first process evaluates, and the others wait for it.
_PATIENCE = timedelta(hours=6)


def join(device: str = "auto") -> torch.device:
    """Join the group that ``torchrun`` announces, if there is one, and choose this process's device.

    Args:
        device: "cpu", "cuda", "mps", or "auto" for the best that is there.

    Raises:
        UsageError: The device is not there, or several processes ask for mps.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        has = ", ".join(name for name, found in there.items() if found)
        raise UsageError(f"Device {device!r} is not available here. This machine has: {has}.")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and device == "mps":
        raise UsageError("Several processes cannot share an mps device. Start one, or use --device cpu.")
    chosen = torch.device(device)
    if device == "cuda":
        number, has = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= has:
            raise UsageError(
                f"This machine has {has} cuda device(s), fewer than processes. Start {has}, or use --device cpu."
            )
        chosen = torch.device("cuda", number)
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_PATIENCE)
    return chosen


def wait() -> None:
    """Wait until every process has come here: the others must not end while the first still writes."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Leave the group again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; the first, 0, writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process runs the block before the others: it makes the files that they then find."""
    if rank() > 0:
        dist.barrier()
    try:
        yield
    finally:
        if rank() == 0 and count() > 1:
            dist.barrier()


def total(values: Tensor) -> Tensor:
    """The sum over processes."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """What every process gives, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


@torch.no_grad()
def copy_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if count() > 1:
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over processes; one that no process has stays None."""
    if count() == 1:
        return
    parameters = list(parameters)
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(has, dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter, wanted in zip(parameters, has.tolist(), strict=True):
        if not wanted:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype != parameter.grad.dtype or sum(map(Tensor.numel, bucket)) > _BUCKET):
            _sum(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum(bucket)


def _sum(bucket: list[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(part.view(gradient.shape))
