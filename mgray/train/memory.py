"""How many BN groups of a step a rank computes at once: all of them where they fit in memory, else as many as a trial found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from mgray.config import Run
from mgray.jsonfile import write_json
from mgray.plan import BatchShape

MICRO_BATCHES = "micro_batches.json"
"""File in a run's folder with what was found, by device and model, then by batch."""


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that `fits`, by bisection; 0 where not even 1 does."""
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_key(run: Run, device: torch.device) -> str:
    """What the memory of a step depends on besides its batch: the device, the model, and how it computes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    train = run.train
    tree = {
        "model": run.to_json()["model"] | {"init": ""},
        "train": [train.precision, train.channels_last, train.mixup > 0 or train.cutmix > 0],
    }
    return f"{name}, model {hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]}"


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
