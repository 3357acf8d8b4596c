"""Which clips of a step go to which rank: whole batch-norm groups, contiguous and as even as possible."""

from __future__ import annotations

from dataclasses import dataclass


def _cut(total: int, parts: int, part: int) -> int:
    return total * part // parts


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's clips of a step, as offsets into the global batch.

    `groups` are the ranges of clips that share statistics *on this rank*. `ranks` are those that a group spans where
    there are fewer groups than ranks: its statistics are synchronised over just them.
    """

    clips: range
    groups: tuple[range, ...]
    ranks: range


def share_of(rank: int, world_size: int, clips: int, num_groups: int) -> Share:
    """The share of `rank` in a step of `clips` clips and `num_groups` batch-norm groups."""
    num_groups = min(num_groups, clips)

    def bound(group: int) -> int:
        return _cut(clips, num_groups, group)

    if num_groups >= world_size:
        first, last = _cut(num_groups, world_size, rank), _cut(num_groups, world_size, rank + 1)
        groups = tuple(range(bound(g), bound(g + 1)) for g in range(first, last))
        return Share(range(bound(first), bound(last)), groups, range(rank, rank + 1))
    group = ((rank + 1) * num_groups - 1) // world_size
    ranks = range(_cut(world_size, num_groups, group), _cut(world_size, num_groups, group + 1))
    start, size = bound(group), bound(group + 1) - bound(group)
    place = rank - ranks.start
    mine = range(start + _cut(size, len(ranks), place), start + _cut(size, len(ranks), place + 1))
    return Share(mine, (mine,), ranks)
