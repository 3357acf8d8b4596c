"""Clips: which frames and which window of a video a step trains on, as a pure function of (seed, position)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mgray.errors import ConfigError
from mgray.plan import ClipShape, Step

Sampling = Literal["stride", "segments"]
"""Which frames a clip has: each a stride after the one before, or one of each of as many segments of the whole video."""
Jitter = Literal["uniform", "inverse"]
"""How a short side is drawn: uniformly, or uniformly in its inverse."""
_MASK = (1 << 64) - 1
_END = 1.0 - 1e-9
"""The last share of a video's room: at 1 itself a clip would begin a frame too late."""
ASSUMED_FPS = 25.0
"""Frames per second of a video whose file does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """The clips of a video that its scores are pooled from: `clips` over its length, times `crops` over its picture.

    Raises:
        ConfigError: no clip, or neither 1 nor 3 crops.
    """

    clips: int = 1
    """Spread evenly from the video's start to its end; one is in the middle."""
    crops: int = 1
    """1 in the middle, or 3 along the longer side: at its start, middle and end."""

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops not in (1, 3):
            raise _bad_views(str(self))

    @classmethod
    def parse(cls, text: str) -> Views:
        """The views of e.g. `10x3`.

        Raises:
            ConfigError: another form, no clip, or neither 1 nor 3 crops.
        """
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
        if match is None:
            raise _bad_views(text)
        return cls(clips=int(match[1]), crops=int(match[2]))

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"

    def __len__(self) -> int:
        return self.clips * self.crops

    @property
    def starts(self) -> tuple[float, ...]:
        """Where each clip begins, as a share of the room: i / (N - 1), as PySlowFast does with `use_offset`."""
        return (0.5,) if self.clips == 1 else tuple(min(i / (self.clips - 1), _END) for i in range(self.clips))

    @property
    def places(self) -> tuple[float, ...]:
        """Where each crop lies along the longer side, as a share of the room."""
        return (0.5,) if self.crops == 1 else (0.0, 0.5, 1.0)


def _bad_views(text: str) -> ConfigError:
    return ConfigError(
        "views", text, "is no CLIPSxCROPS of 1 clip or more and 1 or 3 crops", "give e.g. 10x3, 3x3 or 1x1"
    )


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What sampling needs to know of a video, in display orientation (pixels, frames per second)."""

    num_frames: int
    width: int
    height: int
    fps: float


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """One clip to decode.

    `frames` are source frames in display order, one per frame of `shape`, never falling. `box` is the crop's
    (left, top, right, bottom) in pixels of the full source frame in display orientation.
    """

    position: int
    """Place in the sample stream (training), or the sample's index (validation)."""
    sample: int
    """Index within the split."""
    shape: ClipShape
    frames: tuple[int, ...]
    box: tuple[float, float, float, float]
    flip: bool

    @property
    def scale(self) -> float:
        """Pixels of the clip for one pixel of the source, the greater of both directions."""
        left, top, right, bottom = self.box
        return max(self.shape.width / (right - left), self.shape.height / (bottom - top))


def train_clip(
    step: Step,
    position: int,
    sample: int,
    video: VideoInfo,
    *,
    seed: int,
    fps: float,
    flip: bool,
    sampling: Sampling = "stride",
    jitter: Jitter = "uniform",
) -> ClipSpec:
    """The clip at `position` of the sample stream: uniform stride, start, short side, window and mirroring.

    Args:
        step: gives the clip's shape, and the bounds of stride and resized short side (paper, section 3.3).
        position: place in the sample stream; with `seed` it decides every draw.
        sample: index of the video within the training split.
        fps: frames per second that the stride counts in; 0 counts the video's own frames.
        flip: mirror half of the clips.
        sampling: segments have a frame each that is drawn from all of theirs, and neither stride nor start.
    """
    draws = _Draws(seed, position)
    shape = step.shape.clip
    stride = draws.integer(step.stride_min, step.stride_max) * _source_frames(video, fps)
    start = draws.fraction()
    short_side = draws.short_side(step.jitter_min, step.jitter_max, jitter)
    across, down = draws.fraction(), draws.fraction()
    mirrored = draws.integer(0, 1) == 1
    if sampling == "segments":
        frames = tuple(draws.integer(first, last) for first, last in _segments(video, shape.frames))
    else:
        frames = _frames(video, shape.frames, stride, start)
    return ClipSpec(
        position=position,
        sample=sample,
        shape=shape,
        frames=frames,
        box=_box(video, shape, short_side, across, down),
        flip=flip and mirrored,
    )


def view_clips(
    sample: int,
    video: VideoInfo,
    shape: ClipShape,
    views: Views,
    *,
    stride: int,
    short_side: int,
    fps: float,
    sampling: Sampling = "stride",
) -> Iterator[ClipSpec]:
    """The views of a video, all crops of its first clip first; across the shorter side they are in the middle.

    Args:
        sample: the video's index; view v is at position `sample * len(views) + v`.
        stride: frames from one sampled frame to the next, counted in `fps`.
        short_side: pixels that the video's short side is resized to before the crop.
        fps: frames per second that the stride counts in; 0 counts the video's own frames.
        sampling: the frames of segments are those in their middle; of several clips each has another place within them.
    """
    source_stride = stride * _source_frames(video, fps)
    boxes = [
        _box(video, shape, short_side, *((place, 0.5) if video.width >= video.height else (0.5, place)))
        for place in views.places
    ]
    position = sample * len(views)
    for start in views.starts:
        if sampling == "segments":
            parts = _segments(video, shape.frames)
            frames = tuple(first + int(start * (last - first) + 1e-6) for first, last in parts)
        else:
            frames = _frames(video, shape.frames, source_stride, start)
        for box in boxes:
            yield ClipSpec(position=position, sample=sample, shape=shape, frames=frames, box=box, flip=False)
            position += 1


def sliding_clips(
    video: VideoInfo, shape: ClipShape, *, stride: int, short_side: int, fps: float, every_s: float
) -> tuple[ClipSpec, ...]:
    """Centre crops of a video that begin every `every_s` seconds (at least a frame) for as long as whole ones fit.

    The last one ends with the video, wherever that is; 0 seconds sets them end to end. Their positions count from 0.
    """
    source_stride = stride * _source_frames(video, fps)
    span = clip_span(video, shape, stride=stride, fps=fps)
    step = max(1.0, every_s * (video.fps or ASSUMED_FPS) if every_s else span)
    room = max(0.0, video.num_frames - span)
    count = math.floor(room / step + 1e-9) + 1
    firsts = [number * step for number in range(count)]
    if int(room) > int(firsts[-1]):
        firsts.append(room)
    box = _box(video, shape, short_side, 0.5, 0.5)
    last = video.num_frames - 1
    return tuple(
        ClipSpec(
            position=number, sample=0, shape=shape,
            frames=tuple(min(int(first + i * source_stride), last) for i in range(shape.frames)), box=box, flip=False,
        )
        for number, first in enumerate(firsts)
    )  # fmt: skip


class _Draws:
    """Counter-based draws (Philox) keyed by (seed, position); raw words, so no release of numpy changes them."""

    def __init__(self, seed: int, position: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed & _MASK, position & _MASK], dtype=np.uint64))

    def integer(self, low: int, high: int) -> int:
        """Uniform in [low, high]."""
        return low + (int(self._philox.random_raw()) * (high - low + 1) >> 64)

    def short_side(self, low: int, high: int, jitter: Jitter) -> int:
        """In [low, high]; either way one draw."""
        if jitter == "uniform":
            return self.integer(low, high)
        return round(1.0 / (1.0 / high + self.fraction() * (1.0 / low - 1.0 / high)))

    def fraction(self) -> float:
        """Uniform in [0, 1)."""
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53


def clip_span(video: VideoInfo, shape: ClipShape, *, stride: int, fps: float) -> float:
    """Source frames that a clip stands for: one stride for each of its frames."""
    return shape.frames * stride * _source_frames(video, fps)


def _source_frames(video: VideoInfo, fps: float) -> float:
    """Source frames for one frame of `fps`."""
    return video.fps / fps if fps > 0 and video.fps > 0 else 1.0


def _frames(video: VideoInfo, count: int, stride: float, start: float) -> tuple[int, ...]:
    """`count` frames at `stride`, the first at the share `start` of the room; a short video repeats its last frame."""
    last = video.num_frames - 1
    room = max(0.0, video.num_frames - (count - 1) * stride)  # a whole stride has `room` possible first frames
    first = start * room
    return tuple(min(int(first + i * stride), last) for i in range(count))


def _segments(video: VideoInfo, count: int) -> list[tuple[int, int]]:
    """First and last frame of `count` segments that cover a video, neighbours sharing one (as PySlowFast has them)."""
    size = (video.num_frames - 1) / count
    return [(round(size * i), round(size * (i + 1))) for i in range(count)]


def _box(
    video: VideoInfo, shape: ClipShape, short_side: int, across: float, down: float
) -> tuple[float, float, float, float]:
    """The window of `shape` in a video whose short side is resized to `short_side`, in source pixels.

    A window that would not fit grows the video until it does (its aspect stays).
    """
    scale = max(short_side / min(video.width, video.height), shape.width / video.width, shape.height / video.height)
    width, height = min(shape.width / scale, video.width), min(shape.height / scale, video.height)
    left, top = across * (video.width - width), down * (video.height - height)
    return left, top, min(left + width, video.width), min(top + height, video.height)
