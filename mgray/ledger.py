"""The ledger of a run: for each step what was trained on, 64 bytes, so that it can be proven afterwards.

Rank 0 of each attempt appends to a file of its own, `ledger/00000.bin`, `00001.bin`, ... Each record holds a digest over itself and the
record before it; the first of an attempt goes on from the checkpoint that the attempt started from, whose description holds the
digest too. So the surviving history of all attempts is one chain. `.faults` files beside them hold the clips whose video was broken.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mgray.plan import Step

FOLDER = "ledger"
MAGIC = b"mgrayL01"
HEADER = np.dtype([("magic", "S8"), ("attempt", "<i8"), ("step", "<i8"), ("parent", "<u8"), ("digest", "<u8")])
"""`parent` is the digest after the step that the attempt starts from, 0 at the start of the run (and where it is not known)."""
RECORD = np.dtype([
    ("step", "<i8"), ("position", "<i8"), ("lr", "<f8"), ("checksum", "<u8"), ("clips", "<u4"), ("world_size", "<u4"), ("version", "<u4"),
    ("frames", "<u2"), ("height", "<u2"), ("width", "<u2"), ("phase", "<u2"), ("slot", "<u2"), ("substituted", "<u2"), ("digest", "<u8"),
])  # fmt: skip
"""`position` is the first; `checksum` is of the (position, sample) pairs; `version` of the schedule; `substituted` clips had a broken video."""
FAULT = np.dtype([("step", "<i8"), ("position", "<i8"), ("sample", "<i8"), ("substitute", "<i8")])
_BODY = RECORD.itemsize - 8
_ROUNDS = 8

Records = npt.NDArray[Any]
"""Structured, of dtype RECORD."""
Words = npt.NDArray[np.uint64]


def chained(parent: int, content: bytes) -> int:
    """The digest of some content after what `parent` is the digest of."""
    return int.from_bytes(hashlib.blake2b(parent.to_bytes(8, "little") + content, digest_size=8).digest(), "little")


def words_of(positions: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> Words:
    """30 bits of each (position, sample) pair; a step's checksum is their sum, the same whatever the order, exact in a float64."""
    word = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + samples.astype(np.uint64)
    word = (word ^ (word >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return word >> np.uint64(34)


def samples_at(positions: npt.NDArray[np.int64], num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    """`mgray.plan.sample_at` of many positions at once."""
    epochs, index = np.divmod(positions, num_samples)
    distinct, of_position = np.unique(epochs, return_inverse=True)
    mixed_seed = _mix(np.array([seed & (1 << 64) - 1], np.uint64))
    keys = _mix(mixed_seed ^ distinct.astype(np.uint64))
    rounds = [_mix(keys ^ np.uint64(number << 56)) for number in range(_ROUNDS)]
    half = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = index.astype(np.uint64)
    left_over = np.arange(len(positions))
    while len(left_over):
        value, epoch = result[left_over], of_position[left_over]
        left, right = value >> half, value & mask
        for keys_of_round in rounds:
            left, right = right, left ^ (_mix(right ^ keys_of_round[epoch]) & mask)
        value = left << half | right
        result[left_over] = value
        left_over = left_over[value >= num_samples]
    return result.astype(np.int64)


def _mix(value: Words) -> Words:
    """SplitMix64's finaliser, as in `mgray.plan.order`."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class LedgerWriter:
    """Appends the steps of one attempt; memory holds those since the last `flush`."""

    def __init__(self, folder: Path, attempt: int, step: int, parent: int) -> None:
        """`folder` is the run's; the attempt goes on from `step`, after which the digest was `parent`."""
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in self._folder.glob("[0-9]*.bin")), default=-1) + 1
        self._faults = self._folder / f"{number:05d}.faults"
        head = np.array((MAGIC, attempt, step, parent, 0), HEADER)
        head["digest"] = chained(0, head.tobytes()[:-8])
        self._file = (self._folder / f"{number:05d}.bin").open("xb")
        self._file.write(head.tobytes())
        self.digest = parent
        self._pending = bytearray()

    def append(self, step: Step, *, version: int, world_size: int, checksum: int, substituted: int) -> None:
        """A step that all ranks have done."""
        shape = step.shape
        record = np.array(
            (
                step.index, step.first_position, step.lr, checksum, shape.clips, world_size, version,
                shape.frames, shape.height, shape.width, step.phase, step.slot, min(substituted, 65535), 0,
            ), RECORD,
        ).tobytes()[:_BODY]  # fmt: skip
        self.digest = chained(self.digest, record)
        self._pending += record + self.digest.to_bytes(8, "little")

    def faults(self, rows: Iterable[tuple[int, int, int, int]]) -> None:
        """Clips of broken videos: (step, position, sample, substitute)."""
        with self._faults.open("ab") as file:
            file.write(np.array([*rows], FAULT).tobytes())

    def flush(self) -> None:
        self._file.write(self._pending)
        self._file.flush()
        self._pending.clear()

    def sync(self) -> int:
        """Bring everything to disk; the digest after the last step."""
        self.flush()
        os.fsync(self._file.fileno())
        return self.digest

    def close(self) -> None:
        self.flush()
        self._file.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFile:
    """One attempt's part of a ledger."""

    path: Path
    attempt: int
    step: int
    """The first step that it trains."""
    parent: int
    num_records: int
    torn_bytes: int
    """Of a record that was cut off by a kill."""

    @classmethod
    def read(cls, path: Path) -> AttemptFile | None:
        """The header of a file; None where it was cut off within it, or is no ledger's."""
        with path.open("rb") as file:
            content = file.read(HEADER.itemsize)
        if len(content) < HEADER.itemsize:
            return None
        head = np.frombuffer(content, HEADER)[0]
        if head["magic"] != MAGIC or int(head["digest"]) != chained(0, content[:-8]):
            return None
        count, torn = divmod(path.stat().st_size - HEADER.itemsize, RECORD.itemsize)
        return cls(
            path=path, attempt=int(head["attempt"]), step=int(head["step"]), parent=int(head["parent"]), num_records=count, torn_bytes=torn
        )  # fmt: skip

    def chunks(self, size: int) -> Iterator[Records]:
        """The whole records, so many at a time."""
        with self.path.open("rb") as file:
            file.seek(HEADER.itemsize)
            left = self.num_records
            while left:
                yield np.frombuffer(file.read(min(size, left) * RECORD.itemsize), RECORD)
                left -= min(size, left)

    def fault_rows(self) -> npt.NDArray[Any]:
        """Clips of broken videos, of dtype FAULT; a row that was cut off is left out."""
        path = self.path.with_suffix(".faults")
        content = path.read_bytes() if path.is_file() else b""
        return np.frombuffer(content[: len(content) // FAULT.itemsize * FAULT.itemsize], FAULT)


def body_of(record: Any) -> bytes:
    """What a record's digest is of."""
    content: bytes = record.tobytes()
    return content[:_BODY]
