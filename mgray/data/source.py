"""Which clips form a step: pure functions of the step's number, the same on every machine.

A decode worker is given a source and a step's number, and derives everything else.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mgray.data.clip import ASSUMED_FPS, ClipSpec, Jitter, Sampling, Views, train_clip, view_clips
from mgray.data.decode import decode_clips
from mgray.data.shard import ShardSet
from mgray.errors import VideoError
from mgray.plan import ClipShape, Plan, Share, Step, sample_at, share_of


@dataclass(frozen=True, slots=True)
class Block:
    """One rank's clips of one batch: uint8 [N, T, H, W, 3] with labels, dataset indices and positions, each [N].

    In a multi-label dataset labels are [N, K], 1 for each of the K classes that a clip shows.
    """

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
    sampling: Sampling = "stride"
    jitter: Jitter = "uniform"

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
            clip = train_clip(
                step,
                position,
                sample,
                video,
                seed=self.seed,
                fps=self.fps,
                flip=self.flip,
                sampling=self.sampling,
                jitter=self.jitter,
            )
            specs.append(clip)
        return tuple(specs)

    @staticmethod
    def _share(step: Step, rank: int, world_size: int) -> Share:
        return share_of(rank, world_size, step.shape.clips, step.bn_groups)


@dataclass(frozen=True, slots=True)
class ValSource:
    """The validation split in order; every video is with all its views in exactly one rank's batch.

    Batches, counted over all ranks, hold the same videos on any number of ranks.
    """

    shards: ShardSet
    shape: ClipShape
    stride: int
    short_side: int
    fps: float
    batch: int
    """Videos of a batch on each rank."""
    version: int = 0
    views: Views = field(default_factory=Views)
    """Of each video; without it one centred clip."""
    sampling: Sampling = "stride"

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        specs = self.clips(index, rank, world_size)
        return _decoded(self.shards, "val", index, self.version, specs, 1.0)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        return 3 * len(self._samples(index, rank, world_size)) * len(self.views) * self.shape.voxels

    def num_batches(self, world_size: int) -> int:
        return -(-self.shards.num_samples("val") // (self.batch * world_size))

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        """What `rank` decodes for batch `index`, in the batch's order."""
        return tuple(
            clip
            for sample in self._samples(index, rank, world_size)
            for clip in view_clips(
                sample, self.shards.info("val", sample), self.shape, self.views,
                stride=self.stride, short_side=self.short_side, fps=self.fps, sampling=self.sampling,
            )
        )  # fmt: skip

    def _samples(self, index: int, rank: int, world_size: int) -> range:
        total = self.shards.num_samples("val")
        first = (index * world_size + rank) * self.batch
        return range(min(first, total), min(first + self.batch, total))


def _decoded(
    shards: ShardSet, split: str, index: int, version: int, specs: Sequence[ClipSpec], enlarge: float
) -> Block | None:
    """Decode clips of one shape into one array, each from the coarsest level that serves it; None where there are none.

    Neighbouring clips of one video are decoded together.

    Raises:
        VideoError: it names the video that cannot be decoded.
    """
    if not specs:
        return None
    shape = specs[0].shape
    clips_NTHWC = np.empty((len(specs), shape.frames, shape.height, shape.width, 3), np.uint8)
    places = [(spec.sample, shards.level_for(split, spec.sample, spec.scale, enlarge)) for spec in specs]
    runs = [[*run] for _, run in itertools.groupby(range(len(specs)), key=places.__getitem__)]
    wanted = [(*places[run[0]], sorted({frame for place in run for frame in specs[place].frames})) for run in runs]
    for run, video in zip(runs, shards.videos(split, wanted), strict=True):
        here = slice(run[0], run[-1] + 1)
        try:
            decode_clips(video, specs[here], clips_NTHWC[here])
        except VideoError as error:
            path = shards.path(split, specs[run[0]].sample)
            raise VideoError("data.path", path, error.problem, error.remedy) from None
    return Block(
        index=index,
        version=version,
        clips_NTHWC=clips_NTHWC,
        labels_N=_labels(shards, split, specs),
        samples_N=np.array([spec.sample for spec in specs], np.int64),
        positions_N=np.array([spec.position for spec in specs], np.int64),
    )


def _labels(shards: ShardSet, split: str, specs: Sequence[ClipSpec]) -> np.ndarray:
    """The labels of clips; of those for training what they show from their first to their last frame, of others all their video's.

    (PySlowFast trains and tests on Charades so.)
    """
    if not shards.multi_label:
        return np.array([shards.label(split, spec.sample) for spec in specs], np.int64)
    if split != "train":
        return np.stack([shards.shown(split, spec.sample) for spec in specs])
    rows = []
    for spec in specs:
        rate = shards.info(split, spec.sample).fps or ASSUMED_FPS
        rows.append(shards.shown(split, spec.sample, spec.frames[0] / rate, spec.frames[-1] / rate))
    return np.stack(rows)
