"""Windows: from the planes of decoded frames to a finished clip, with one conversion and one antialiased resize for all frames.

Rows of a window are cut out of each frame's planes into one tall picture, which is converted to RGB in one call; frames are then
resized together (bilinear, antialiased: what torchvision does), straight into their place in the block. What lies outside the
window is never converted.

Shape suffixes: T frames, H height, W width, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Planes = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
"""Y [H, W], Cb and Cr [H/2, W/2] (rounded up)."""
_WIDE = 32
"""Converted rows have a multiple of so many pixels, where the frame is wide enough: FFmpeg then leaves no gap between them."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """One direction of a window: the pixels that are cut out, and how they are resized.

    The cut starts where the window does, to the nearest pixel, and may be longer than it; `scale` is exact. A mirrored window
    starts at its right end, so the cut ends there, and may begin before the frame.
    """

    start: int
    length: int
    scale: float
    """Pixels of the finished clip for one of the frame."""


class Window:
    """Collects a window of each frame of a clip (4:2:0), then resizes it to `width` x `height`.

    Args:
        frames: distinct frames of the clip.
        box: (left, top, right, bottom) in pixels of a frame of `size` = (width, height).
        out_size: (width, height) of the clip in pixels.
        flip: mirror left to right.
    """

    def __init__(
        self,
        frames: int,
        box: tuple[float, float, float, float],
        size: tuple[int, int],
        out_size: tuple[int, int],
        flip: bool,
    ) -> None:
        left, top, right, bottom = box
        self._across = _cut(left, right, size[0], out_size[0], _WIDE, mirrored=flip)
        self._down = _cut(top, bottom, size[1], out_size[1], 2, mirrored=False)
        self._flip = flip
        self._picture, self._planes = _empty_picture(frames, self._down.length, self._across.length)

    def put(self, index: int, planes: Planes) -> None:
        """Cut frame `index` out of its planes."""
        top, left = self._down.start, self._across.start
        for target, plane, share in zip(self._planes, planes, (1, 2, 2), strict=True):
            rows, columns = target.shape[1:]
            before = -min(0, left // share)
            cut = plane[top // share : top // share + rows, max(0, left // share) : left // share + columns]
            target[index, : cut.shape[0], before : before + cut.shape[1]] = cut
            # a frame of odd size ends within a chroma pixel
            if cut.shape[0] < rows:
                target[index, cut.shape[0] :] = target[index, cut.shape[0] - 1]
            target[index, :, :before] = target[index, :, before : before + 1]
            end = before + cut.shape[1]
            if end < columns:
                target[index, :, end:] = target[index, :, end - 1 : end]

    @property
    def frame_size(self) -> tuple[int, int]:
        """(width, height) of what is cut out of a frame."""
        return self._across.length, self._down.length

    def close(self, max_pixels: int) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """The pictures to convert, once all frames are put: I420, so many frames one below the other.

        Args:
            max_pixels: of a picture, unless it is of one frame.
        """
        import torch  # takes seconds, and ingest has no use for it

        if self._flip:
            for plane in self._planes:
                plane[...] = torch.flip(torch.from_numpy(plane), [2]).numpy()
        frames, height, width = self._planes[0].shape
        most = max(1, max_pixels // (height * width))
        if frames <= most:
            yield frames, self._picture
            return
        for first in range(0, frames, most):
            count = min(most, frames - first)
            picture, planes = _empty_picture(count, height, width)
            for target, plane in zip(planes, self._planes, strict=True):
                target[...] = plane[first : first + most]
            yield count, picture

    def resize(self, rgb_THWC: npt.NDArray[np.uint8], out_THWC: npt.NDArray[np.uint8]) -> None:
        """Resize the converted picture (contiguous) into a clip of as many frames."""
        import torch

        # what interpolate(antialias=True) calls, but with scales that need not be the ratio of the sizes
        resize = torch.ops.aten._upsample_bilinear2d_aa.out
        source = torch.from_numpy(rgb_THWC).permute(0, 3, 1, 2)
        target = torch.from_numpy(out_THWC).permute(0, 3, 1, 2)
        size = list(out_THWC.shape[1:3])
        resize(source, size, False, self._down.scale, self._across.scale, out=target)


def _empty_picture(frames: int, height: int, width: int) -> tuple[npt.NDArray[np.uint8], Planes]:
    """One I420 picture of frames, one below the other, and its planes: [frames, height, width], and half as high and wide."""
    rows = 4 * math.ceil(frames * height / 4)  # PyAV takes those of a multiple of 4 rows
    picture = np.empty((rows * 3 // 2, width), np.uint8)
    flat, luma, chroma = picture.reshape(-1), rows * width, rows * width // 4

    def plane(offset: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        return flat[offset : offset + frames * height * width].reshape(frames, height, width)

    y, u = plane(0, height, width), plane(luma, height // 2, width // 2)
    return picture, (y, u, plane(luma + chroma, height // 2, width // 2))


def _cut(begin: float, end: float, size: int, out: int, multiple: int, *, mirrored: bool) -> _Cut:
    """Even lengths, since a chroma pixel is two wide; beyond the frame its outermost pixel is repeated."""
    span = end - begin
    first, last = round(begin), round(end)
    length = multiple * math.ceil((math.ceil(span) + 1) / multiple)
    if mirrored:
        length = min(length, 2 * math.ceil(last / 2))
        start = last - length
    else:
        start = first
        length = min(length, 2 * math.ceil((size - start) / 2))
    if length == out and span != out:  # torch takes equal sizes as nothing to resize
        length += 2
        start -= 2 if mirrored else 0
    return _Cut(start, length, out / span)
