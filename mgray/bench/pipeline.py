"""What Ray adds to decoding: the same blocks decoded in this process, and delivered by a rank's pipeline with one decode task.

Blocks are as large as a GPU's share of a Kinetics step. Both decode on one thread and take turns; seconds are by the clock, since the pipeline's
processes work side by side. Opening a pipeline is left out: training opens the next one while it uses up the one before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgray.config import FeedSection, Run
from mgray.data.clip import ClipSpec
from mgray.data.feed import GridShard
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import Block, decode_block
from mgray.trainer import ray_running

if TYPE_CHECKING:
    from mgray.bench.feed import Cell

BLOCK_VOXELS = 8 * 32 * 224 * 224
"""Eight clips of the base shape."""


@dataclass(frozen=True, slots=True)
class CellSource:
    """Blocks of one grid: its clips over and over."""

    shards: ShardSet
    specs: tuple[ClipSpec, ...]
    enlarge: float
    clips: int
    """Of a block."""

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        around = itertools.islice(itertools.cycle(self.specs), index % len(self.specs), None)
        specs = list(itertools.islice(around, self.clips))
        return decode_block(self.shards, "train", index, 0, specs, self.enlarge, None)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        return 3 * self.clips * self.specs[0].shape.voxels


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineCost:
    """Seconds of a block by the clock."""

    decoded_s: float
    """In this process, by decoding alone."""
    delivered_s: float
    """From one block's arrival to the next."""

    @property
    def overhead(self) -> float:
        return self.delivered_s / self.decoded_s - 1


def measure_pipelines(
    shards: ShardSet, cells: Sequence[Cell], enlarge: float, *, blocks: int = 6, rounds: int = 3
) -> dict[str, PipelineCost]:
    """What a block of each cell costs both ways, the least of some rounds; starts a local Ray where none runs."""
    found = {}
    with ray_running(Run()):
        rank = GridShard(0, 1, "", FeedSection(decoders=1, ahead=blocks + 1, ahead_gib=64.0))
        for cell in cells:
            clips = max(1, BLOCK_VOXELS // (cell.frames * cell.height * cell.width))
            source = CellSource(shards, cell.specs, enlarge, clips)
            decoded, delivered = [], []
            for _ in range(rounds):
                decoded.append(_decoded_s(source, blocks))
                delivered.append(_delivered_s(rank, source, blocks))
            found[cell.name] = PipelineCost(decoded_s=min(decoded), delivered_s=min(delivered))
    return found


def _decoded_s(source: CellSource, blocks: int) -> float:
    source.block(0, 0, 1)
    started = time.perf_counter()
    for index in range(1, blocks + 1):
        source.block(index, 0, 1)
    return (time.perf_counter() - started) / blocks


def _delivered_s(rank: GridShard, source: CellSource, blocks: int) -> float:
    with rank.blocks(source, [range(blocks + 1)]) as delivered:
        next(delivered)  # the process has started, and the decoder is open
        started = time.perf_counter()
        for _ in delivered:
            pass
        return (time.perf_counter() - started) / blocks
