"""The videos of a run that turned out to be broken while it trains: the same list on every rank, and its bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from mgray.data.shards.index import SPLITS
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block
from mgray.errors import DataError
from mgray.train.session import Session

Split = Literal["train", "val"]
_SHOWN = 8


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A clip of a broken video: where it was due, and what was trained on instead (-1: nothing)."""

    split: Split
    step: int
    position: int
    order: int
    """Among the findings of one position: substitutes may be broken too."""
    sample: int
    substitute: int
    reason: str


class Quarantine:
    """Gathers what the ranks find, and stops the run where it is too much."""

    def __init__(
        self, session: Session, shards: ShardSet, max_broken: float, known: Mapping[tuple[str, int], str]
    ) -> None:
        """`known` are those that earlier attempts found, {(split, sample): reason}; what rank 0 gives counts."""
        self._session, self._shards, self._max_broken = session, shards, max_broken
        self._known = dict(known)
        self._found: list[Finding] = []

    def note(self, split: Split, step: int, block: Block | None) -> int:
        """Keep what a block of this rank says until the next `gather`; how many clips it concerns."""
        faults = block.faults if block is not None else ()
        self._found += [
            Finding(split, step, fault.position, order, fault.sample, fault.substitute, fault.reason)
            for order, fault in enumerate(faults)
        ]
        return len(faults)

    def exchange(self) -> tuple[list[Finding], list[Finding]]:
        """`gather`, if any rank has found something; all ranks take part."""
        count = torch.tensor([len(self._found)], device=self._session.device)
        if self._session.world_size > 1:
            dist.all_reduce(count)
        return self.gather() if count.item() else ([], [])

    def gather(self) -> tuple[list[Finding], list[Finding]]:
        """What all ranks have found since the last call, in order, and of each video not known before the first; all ranks take part."""
        parts = [(self._found, self._known)]
        if self._session.world_size > 1:
            parts = [([], {})] * self._session.world_size
            dist.all_gather_object(parts, (self._found, self._known))
        self._known = dict(parts[0][1])
        self._found = []
        findings = sorted(finding for part, _ in parts for finding in part)
        fresh = []
        for finding in findings:
            if (finding.split, finding.sample) not in self._known:
                self._known[finding.split, finding.sample] = finding.reason
                fresh.append(finding)
        return findings, fresh

    def check(self) -> None:
        """Stop where a larger share of a split is broken than the run allows.

        Raises:
            DataError: it lists them.
        """
        for split in SPLITS:
            broken = {sample: reason for (of, sample), reason in self._known.items() if of == split}
            remedy = "raise --data.max-broken to go on from the last checkpoint; metrics.jsonl lists all"
            check_broken(self._shards, split, broken, self._max_broken, remedy)


def check_broken(shards: ShardSet, split: str, broken: Mapping[int, str], max_broken: float, remedy: str) -> None:
    """Refuse a split of which a larger share than `max_broken` is broken.

    Args:
        broken: the reason for each of these videos.
        remedy: what may be done beside repairing them.

    Raises:
        DataError: it lists them.
    """
    total = shards.num_samples(split)
    if len(broken) <= max_broken * total:
        return
    listed = [f"{shards.path(split, sample)} ({reason})" for sample, reason in broken.items()]
    raise DataError(
        "data.path", shards.root,
        f"{len(broken)} of {total} {split} videos are broken, more than data.max_broken = {max_broken:g}: "
        f"{', '.join(listed[:_SHOWN])}{', ...' if len(listed) > _SHOWN else ''}",
        f"repair them and ingest again, or {remedy}",
    )  # fmt: skip
