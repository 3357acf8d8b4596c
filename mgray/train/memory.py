"""How many BN groups of a step a rank computes at once: all of them where they fit in memory, else as many as a trial found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from mgray.config import Run, TrainSection
from mgray.jsonfile import write_json
from mgray.plan import BatchShape

MICRO_BATCHES = "micro_batches.json"
"""File in a run's folder with what was found, by devices and model, then by batch."""
_SAID = (
    "out of memory",
    "unable to find an engine",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What errors say where a library, and not torch's allocator, found no memory; cuDNN has no engine where no workspace fits."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory was full (torch has a class of its own for just some of these).

    One of a collective is none: the other ranks do not do theirs anew.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, dist.DistError)
        and any(said in str(error) for said in _SAID)
    )


def bytes_to_come(model: nn.Module, section: TrainSection) -> int:
    """Memory that a run takes beside a step: the optimizer's moments, and the copies that a checkpoint is written from."""
    state: int = sum(value.nbytes for value in model.state_dict().values())
    moments: int = sum(value.nbytes for value in model.parameters()) * (2 if section.optimizer == "adamw" else 1)
    copies = state + moments + (state if section.ema else 0)
    return moments + copies


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that `fits`, by bisection; 0 where not even 1 does."""
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_key(run: Run, device: torch.device, world_size: int) -> str:
    """What the memory of a step depends on besides its batch: the kinds of devices, the model, and how it computes.

    The same on every rank; all have to ask.
    """
    names = [torch.cuda.get_device_name(device) if device.type == "cuda" else device.type]
    if device.type == "cuda" and world_size > 1:
        mine, names = names[0], names * world_size
        dist.all_gather_object(names, mine)
    train = run.train
    tree = {
        "model": run.to_json()["model"] | {"init": ""},
        "train": [train.precision, train.channels_last, train.mixup > 0 or train.cutmix > 0],
    }
    return f"{' + '.join(sorted(set(names)))}, model {hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]}"


class GroupsAtOnce:
    """BN groups that fit in memory together, for each batch; kept in a file where one is given.

    Args:
        file: table in JSON that several ranks may add to.
        key: the part of the table that is read and written, see `memory_key`.
    """

    def __init__(self, file: Path | None = None, key: str = "") -> None:
        self._file, self._key = file, key
        self._known: dict[str, int] = self._read().get(key, {})

    def get(self, shape: BatchShape, bn_groups: int, world_size: int) -> int | None:
        """What was found for a batch on so many ranks; None where nothing was."""
        return self._known.get(_batch(shape, bn_groups, world_size))

    def put(self, shape: BatchShape, bn_groups: int, world_size: int, at_once: int, *, store: bool = True) -> None:
        """Take in what was found; `store` writes it to the file too."""
        self._known[_batch(shape, bn_groups, world_size)] = at_once
        if self._file is None or not store:
            return
        tables = self._read()
        tables.setdefault(self._key, {}).update(self._known)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, tables)

    def _read(self) -> dict[str, dict[str, int]]:
        """The file's tables; a file that is missing or damaged has none, since a trial finds them again."""
        try:
            tables = {} if self._file is None else json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return {
            key: {batch: found for batch, found in table.items() if isinstance(found, int) and found >= 1}
            for key, table in (tables.items() if isinstance(tables, dict) else ())
            if isinstance(table, dict)
        }


def _batch(shape: BatchShape, bn_groups: int, world_size: int) -> str:
    return f"{shape}, {bn_groups} BN groups, {world_size} workers"
