"""The checkpoints of a run, by what lies in its folder.

Ray Train keeps a list of its own (`SNAPSHOT`), which it rewrites in place at each save: a kill or a full disk cuts it off, and then its
controller neither starts nor knows of any checkpoint. So that list is not read, and is removed before each attempt.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgray.train.checkpoint import META

KEEP = 3
"""Checkpoints of a run that are kept."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
PART = ".part"
"""In the name of a checkpoint that is being written, after its own."""
_NAMED_BY_A_RUN = re.compile(r"checkpoint_(\d{9}|\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.\d+)")
"""By its step where it runs without Ray, else by the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A checkpoint, by its description, which is not checked; both numbers are -1 where that cannot be read."""

    path: Path
    attempt: int
    step: int
    """Steps done."""
    data_digest: str

    @property
    def is_disposable(self) -> bool:
        """Whether it has the name that a run gave it, rather than one of somebody who wants to keep it."""
        return _NAMED_BY_A_RUN.fullmatch(self.path.name) is not None


def kept_in(folder: Path) -> list[Kept]:
    """A run's checkpoints, the newest first: by attempt and step, since the clocks of nodes differ."""
    found = [_described(path) for path in folder.glob("checkpoint_*") if path.is_dir() and PART not in path.name]
    return sorted(found, key=lambda item: (item.attempt, item.step, item.path.name), reverse=True)


def _described(path: Path) -> Kept:
    try:
        tree = json.loads((path / META).read_text())
        return Kept(
            path=path, attempt=int(tree["attempt"]), step=int(tree["step"]), data_digest=str(tree["data_digest"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Kept(path=path, attempt=-1, step=-1, data_digest="")


def newest_step(folder: Path) -> int:
    """The step before which a run's newest checkpoint stands; 0 where it has none."""
    return max((item.step for item in kept_in(folder)[:1] if item.step > 0), default=0)


def late(found: Sequence[Kept], keep: int) -> list[Path]:
    """Those of some checkpoints, newest first, that are beyond the number to keep and may be removed."""
    return [item.path for item in found[keep:] if item.is_disposable]


def tidy(folder: Path, keep: int = KEEP) -> None:
    """Make a run's folder ready for an attempt, while nobody writes into it: what saves that were cut off left, old checkpoints and
    Ray's list of them are removed."""
    (folder / SNAPSHOT).unlink(missing_ok=True)
    for path in [*folder.glob(f"checkpoint_*{PART}*"), *late(kept_in(folder), keep)]:
        shutil.rmtree(path, ignore_errors=True)
