"""Clips: which frames and which window of a video a step trains on, as a pure function of (seed, position)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgray.plan import ClipShape, Step

_MASK = (1 << 64) - 1


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
    step: Step, position: int, sample: int, video: VideoInfo, *, seed: int, fps: float, flip: bool
) -> ClipSpec:
    """The clip at `position` of the sample stream: uniform stride, start, short side, window and mirroring.

    Args:
        step: gives the clip's shape, and the bounds of stride and resized short side (paper, section 3.3).
        position: place in the sample stream; with `seed` it decides every draw.
        sample: index of the video within the training split.
        fps: frames per second that the stride counts in; 0 counts the video's own frames.
        flip: mirror half of the clips.
    """
    draws = _Draws(seed, position)
    shape = step.shape.clip
    stride = draws.integer(step.stride_min, step.stride_max) * _source_frames(video, fps)
    start = draws.fraction()
    short_side = draws.integer(step.jitter_min, step.jitter_max)
    across, down = draws.fraction(), draws.fraction()
    mirrored = draws.integer(0, 1) == 1
    return ClipSpec(
        position=position,
        sample=sample,
        shape=shape,
        frames=_frames(video, shape.frames, stride, start),
        box=_box(video, shape, short_side, across, down),
        flip=flip and mirrored,
    )


def center_clip(
    sample: int, video: VideoInfo, shape: ClipShape, *, stride: int, short_side: int, fps: float
) -> ClipSpec:
    """The clip in the middle of a video, in time and in both directions of space.

    Args:
        stride: frames from one sampled frame to the next, counted in `fps`.
        short_side: pixels that the video's short side is resized to before the crop.
        fps: frames per second that the stride counts in; 0 counts the video's own frames.
    """
    return ClipSpec(
        position=sample,
        sample=sample,
        shape=shape,
        frames=_frames(video, shape.frames, stride * _source_frames(video, fps), 0.5),
        box=_box(video, shape, short_side, 0.5, 0.5),
        flip=False,
    )


class _Draws:
    """Counter-based draws (Philox) keyed by (seed, position); raw words, so no release of numpy changes them."""

    def __init__(self, seed: int, position: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed & _MASK, position & _MASK], dtype=np.uint64))

    def integer(self, low: int, high: int) -> int:
        """Uniform in [low, high]."""
        return low + (int(self._philox.random_raw()) * (high - low + 1) >> 64)

    def fraction(self) -> float:
        """Uniform in [0, 1)."""
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53


def _source_frames(video: VideoInfo, fps: float) -> float:
    """Source frames for one frame of `fps`."""
    return video.fps / fps if fps > 0 and video.fps > 0 else 1.0


def _frames(video: VideoInfo, count: int, stride: float, start: float) -> tuple[int, ...]:
    """`count` frames at `stride`, the first at the share `start` of the room; a short video repeats its last frame."""
    last = video.num_frames - 1
    room = max(0.0, video.num_frames - (count - 1) * stride)  # a whole stride has `room` possible first frames
    first = start * room
    return tuple(min(int(first + i * stride), last) for i in range(count))


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
