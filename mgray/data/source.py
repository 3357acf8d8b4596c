"""Which clips form a step: pure functions of the step's number, the same on every machine.

A decode worker is given a source and a step's number, and derives everything else.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mgray.data.clip import ClipSpec, center_clip, train_clip
from mgray.data.decode import decode_clip
from mgray.data.shard import ShardSet
from mgray.errors import VideoError
from mgray.plan import ClipShape, Plan, Share, Step, sample_at, share_of


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


class ClipSource(Protocol):
    """A numbered series of global batches, each shared out over the ranks."""

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        """The clips that `rank` has of batch `index`; None where there are fewer clips than ranks and it has none.

        Raises:
            VideoError: a video cannot be decoded.
        """

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        """Size of that block's clips."""


@dataclass(frozen=True, slots=True)
class TrainSource:
    """The steps of a plan over the training split."""

    shards: ShardSet
    plan: Plan
    seed: int
    fps: float
    flip: bool
    version: int = 0
    enlarge: float = 1.0
    """How much a level of the pyramid may be enlarged."""

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        specs = self.clips(index, rank, world_size)
        return _decoded(self.shards, "train", index, self.version, specs, self.enlarge)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        step = self.plan.step_at(index)
        return 3 * len(self._share(step, rank, world_size).clips) * step.shape.clip.voxels

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        """What `rank` decodes for batch `index`, in the batch's order."""
        step = self.plan.step_at(index)
        share = self._share(step, rank, world_size)
        specs = []
        for position in step.positions[share.clips.start : share.clips.stop]:
            sample = sample_at(position, self.plan.num_samples, self.seed)
            video = self.shards.info("train", sample)
            specs.append(train_clip(step, position, sample, video, seed=self.seed, fps=self.fps, flip=self.flip))
        return tuple(specs)

    @staticmethod
    def _share(step: Step, rank: int, world_size: int) -> Share:
        return share_of(rank, world_size, step.shape.clips, step.bn_groups)


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

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        specs = self.clips(index, rank, world_size)
        return _decoded(self.shards, "val", index, self.version, specs, 1.0)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        return 3 * len(self._samples(index, rank, world_size)) * self.shape.voxels

    def num_batches(self, world_size: int) -> int:
        return -(-self.shards.num_samples("val") // (self.batch * world_size))

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        """What `rank` decodes for batch `index`, in the batch's order."""
        return tuple(
            center_clip(
                sample, self.shards.info("val", sample), self.shape,
                stride=self.stride, short_side=self.short_side, fps=self.fps,
            )
            for sample in self._samples(index, rank, world_size)
        )  # fmt: skip

    def _samples(self, index: int, rank: int, world_size: int) -> range:
        total = self.shards.num_samples("val")
        first = (index * world_size + rank) * self.batch
        return range(min(first, total), min(first + self.batch, total))


def _decoded(
    shards: ShardSet, split: str, index: int, version: int, specs: Sequence[ClipSpec], enlarge: float
) -> Block | None:
    """Decode clips of one shape into one array, each from the coarsest level that serves it; None where there are none.

    Raises:
        VideoError: it names the video that cannot be decoded.
    """
    if not specs:
        return None
    shape = specs[0].shape
    clips_NTHWC = np.empty((len(specs), shape.frames, shape.height, shape.width, 3), np.uint8)
    wanted = [(spec.sample, shards.level_for(split, spec.sample, spec.scale, enlarge), spec.frames) for spec in specs]
    for clip, spec, video in zip(clips_NTHWC, specs, shards.videos(split, wanted), strict=True):
        try:
            decode_clip(video, spec, clip)
        except VideoError as error:
            raise VideoError("data.path", shards.path(split, spec.sample), error.problem, error.remedy) from None
    return Block(
        index=index,
        version=version,
        clips_NTHWC=clips_NTHWC,
        labels_N=np.array([shards.label(split, spec.sample) for spec in specs], np.int64),
        samples_N=np.array([spec.sample for spec in specs], np.int64),
        positions_N=np.array([spec.position for spec in specs], np.int64),
    )
