"""Which clips form a step: pure functions of the step's number, the same on every machine.

A decode worker is given a source and a step's number, and derives everything else.

A training video that cannot be read or decoded is replaced by another, tried in an order that follows from (seed, position)
alone: the same data give the same clips on any number of workers. A video that breaks while a run goes on, or on one node
only, is replaced from then on, or there; the `faults` of a block say where. A validation video is left out instead. So is
treated one that crashes the decoder, once it has ended some attempts of a task (mgray.data.watch).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mgray.data.clip import ASSUMED_FPS, ClipSpec, Jitter, Sampling, Views, train_clip, view_clips
from mgray.data.decode.clips import decode_clips
from mgray.data.shards.shard_set import ShardSet
from mgray.data.watch import begin
from mgray.errors import VideoError
from mgray.plan import ClipShape, Plan, Share, Step, sample_at, share_of, substitute_at

PROBES = 64
"""Substitutes that are tried for a clip: where they all fail, most of the data is broken."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A video that could not be read or decoded when a clip of it was due, at `position`."""

    position: int
    sample: int
    reason: str
    substitute: int
    """The video that the clip is of instead; -1 where there is none (validation)."""


@dataclass(frozen=True, slots=True)
class Block:
    """One rank's clips of one batch: uint8 [N, T, H, W, 3] with labels, dataset indices and positions, each [N].

    In a multi-label dataset labels are [N, K], 1 for each of the K classes that a clip shows.
    A validation block may have fewer clips than planned, or none: those of videos that are broken.
    """

    index: int
    version: int
    clips_NTHWC: np.ndarray
    labels_N: np.ndarray
    samples_N: np.ndarray
    positions_N: np.ndarray
    faults: tuple[Fault, ...] = ()
    """In the order of the batch; a substitute that failed too follows the video that it was for."""


Blocks = Generator[Block | None, None, None]
"""A rank's blocks in the order of the batches; None where it has no clip in one."""


class ClipSource(Protocol):
    """A numbered series of global batches, each shared out over the ranks."""

    def block(self, index: int, rank: int, world_size: int) -> Block | None:
        """The clips that `rank` has of batch `index`; None where there are fewer clips than ranks and it has none.

        Raises:
            DataError: the storage does not answer.
            VideoError: a training video is broken, and so are all that were tried instead.
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
        step = self.plan.step_at(index)

        def substitutes(spec: ClipSpec) -> Iterator[ClipSpec]:
            for probe in range(min(PROBES, self.plan.num_samples)):
                sample = substitute_at(spec.position, probe, self.plan.num_samples, self.seed)
                if sample != spec.sample:
                    yield self._clip(step, spec.position, sample)

        return decode_block(self.shards, "train", index, self.version, specs, self.enlarge, substitutes)

    def num_bytes(self, index: int, rank: int, world_size: int) -> int:
        step = self.plan.step_at(index)
        return 3 * len(self._share(step, rank, world_size).clips) * step.shape.clip.voxels

    def clips(self, index: int, rank: int, world_size: int) -> tuple[ClipSpec, ...]:
        """What `rank` decodes for batch `index`, in the batch's order."""
        step = self.plan.step_at(index)
        share = self._share(step, rank, world_size)
        return tuple(
            self._clip(step, position, sample_at(position, self.plan.num_samples, self.seed))
            for position in step.positions[share.clips.start : share.clips.stop]
        )

    def _clip(self, step: Step, position: int, sample: int) -> ClipSpec:
        video = self.shards.info("train", sample)
        return train_clip(
            step, position, sample, video,
            seed=self.seed, fps=self.fps, flip=self.flip, sampling=self.sampling, jitter=self.jitter,
        )  # fmt: skip

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
        return decode_block(self.shards, "val", index, self.version, specs, 1.0, None)

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


def decode_block(
    shards: ShardSet,
    split: str,
    index: int,
    version: int,
    planned: Sequence[ClipSpec],
    enlarge: float,
    substitutes: Callable[[ClipSpec], Iterator[ClipSpec]] | None,
) -> Block | None:
    """Clips of one shape as one array; None where there are none.

    Args:
        substitutes: what is tried, in this order, where a clip's video is broken; without it the clip is left out.

    Raises:
        DataError: the storage does not answer.
        VideoError: a video is broken, and all its substitutes are.
    """
    if not planned:
        return None
    specs, shape = list(planned), planned[0].shape
    clips_NTHWC = np.empty((len(specs), shape.frames, shape.height, shape.width, 3), np.uint8)
    faults: list[Fault] = []
    left_out = []
    for place, error in _decode(shards, split, specs, enlarge, clips_NTHWC):
        if substitutes is None:
            left_out.append(place)
            faults.append(Fault(specs[place].position, specs[place].sample, error.problem, -1))
            continue
        here = slice(place, place + 1)
        failed = [(specs[place].sample, error.problem)]
        for spec in substitutes(specs[place]):
            problems = _decode(shards, split, [spec], enlarge, clips_NTHWC[here])
            if not problems:
                break
            failed.append((spec.sample, problems[0][1].problem))
        else:
            raise VideoError(
                "data.path", shards.path(split, specs[place].sample), f"{error.problem}, as are {len(failed) - 1} more videos",
                error.remedy,
            )  # fmt: skip
        specs[place] = spec
        faults += [Fault(spec.position, sample, problem, spec.sample) for sample, problem in failed]
    if left_out:
        clips_NTHWC = np.delete(clips_NTHWC, left_out, axis=0)
        specs = [spec for place, spec in enumerate(specs) if place not in left_out]
    return Block(
        index=index,
        version=version,
        clips_NTHWC=clips_NTHWC,
        labels_N=_labels(shards, split, specs),
        samples_N=np.array([spec.sample for spec in specs], np.int64),
        positions_N=np.array([spec.position for spec in specs], np.int64),
        faults=tuple(faults),
    )


def _labels(shards: ShardSet, split: str, specs: Sequence[ClipSpec]) -> np.ndarray:
    """The labels of clips; of those for training what they show from their first to their last frame, of others all their video's.

    (PySlowFast trains and tests on Charades so.)
    """
    if not shards.multi_label:
        return np.array([shards.label(split, spec.sample) for spec in specs], np.int64)
    if split != "train":
        shown = [shards.shown(split, spec.sample) for spec in specs]
        return np.array(shown, np.int64).reshape(len(specs), len(shards.classes))
    rows = []
    for spec in specs:
        rate = shards.info(split, spec.sample).fps or ASSUMED_FPS
        rows.append(shards.shown(split, spec.sample, spec.frames[0] / rate, spec.frames[-1] / rate))
    return np.stack(rows)


def _decode(
    shards: ShardSet, split: str, specs: Sequence[ClipSpec], enlarge: float, clips_NTHWC: np.ndarray
) -> list[tuple[int, VideoError]]:
    """Decode clips into an array, each from the coarsest level that serves it; the places that failed, and why.

    Neighbouring clips of one video are decoded together.
    """
    failures = []
    places = [(spec.sample, shards.level_for(split, spec.sample, spec.scale, enlarge)) for spec in specs]
    runs = [[*run] for _, run in itertools.groupby(range(len(specs)), key=places.__getitem__)]
    wanted = [(*places[run[0]], sorted({frame for place in run for frame in specs[place].frames})) for run in runs]
    for run, video in zip(runs, shards.videos(split, wanted), strict=True):
        here = slice(run[0], run[-1] + 1)
        try:
            if isinstance(video, VideoError):
                raise video
            begin(f"{split} {places[run[0]][0]}")
            decode_clips(video, specs[here], clips_NTHWC[here])
        except VideoError as error:
            failures += [(place, error) for place in run]
    return failures
