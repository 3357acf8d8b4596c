"""Which clips form a step: pure functions of the step's number, the same on every machine.

A decode worker is given a source and a step's number, and derives everything else.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mgray.data.clip import ClipSpec, center_clip, train_clip
from mgray.data.decode import decode_clip
from mgray.data.shard import ShardSet
from mgray.plan import ClipShape, Plan, sample_at, share_of


class ClipSource(Protocol):
    """A numbered series of global batches, each shared out over the ranks."""

    @property
    def split(self) -> str:
        """The split that the clips are from: train or val."""

    @property
    def shards(self) -> ShardSet:
        """Where the videos are."""

    @property
    def version(self) -> int:
        """The version of the schedule that the batches follow."""

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        """The clips that `rank` has of batch `index`, all of one shape; empty where there are fewer clips than ranks."""


@dataclass(frozen=True, slots=True)
class TrainSource:
    """The steps of a plan over the training split."""

    shards: ShardSet
    plan: Plan
    seed: int
    fps: float
    flip: bool
    version: int = 0

    @property
    def split(self) -> str:
        return "train"

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        step = self.plan.step_at(index)
        share = share_of(rank, world_size, step.shape.clips, step.bn_groups)
        specs = []
        for position in step.positions[share.clips.start : share.clips.stop]:
            sample = sample_at(position, self.plan.num_samples, self.seed)
            video = self.shards.info("train", sample)
            specs.append(train_clip(step, position, sample, video, seed=self.seed, fps=self.fps, flip=self.flip))
        return tuple(specs)


@dataclass(frozen=True, slots=True)
class ValSource:
    """The validation split in order, one centred clip a video; every video is in exactly one rank's batch."""

    shards: ShardSet
    shape: ClipShape
    stride: int
    short_side: int
    fps: float
    batch: int
    """Clips of a batch on each rank."""
    version: int = 0

    @property
    def split(self) -> str:
        return "val"

    def num_batches(self, world_size: int) -> int:
        return -(-self.shards.num_samples("val") // (self.batch * world_size))

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        total = self.shards.num_samples("val")
        first = (index * world_size + rank) * self.batch
        return tuple(
            center_clip(
                sample, self.shards.info("val", sample), self.shape,
                stride=self.stride, short_side=self.short_side, fps=self.fps,
            )
            for sample in range(min(first, total), min(first + self.batch, total))
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """One rank's clips of one batch: uint8 [N, T, H, W, 3] with labels, dataset indices and positions, each [N]."""

    index: int
    version: int
    clips_NTHWC: np.ndarray
    labels_N: np.ndarray
    samples_N: np.ndarray
    positions_N: np.ndarray


Blocks = Generator[Block | None, None, None]
"""A rank's blocks in the order of the batches; None where it has no clip in one."""


def decode_block(source: ClipSource, index: int, rank: int, world_size: int) -> Block | None:
    """Decode a rank's clips of batch `index` into one array; None where it has none.

    Raises:
        VideoError: a video cannot be decoded.
    """
    specs = source.clips(index, rank, world_size)
    if not specs:
        return None
    shape = specs[0].shape
    clips_NTHWC = np.empty((len(specs), shape.frames, shape.height, shape.width, 3), np.uint8)
    for clip, spec in zip(clips_NTHWC, specs, strict=True):
        decode_clip(source.shards.video(source.split, spec.sample), spec, clip)
    return Block(
        index=index,
        version=source.version,
        clips_NTHWC=clips_NTHWC,
        labels_N=np.array([source.shards.label(source.split, spec.sample) for spec in specs], np.int64),
        samples_N=np.array([spec.sample for spec in specs], np.int64),
        positions_N=np.array([spec.position for spec in specs], np.int64),
    )
