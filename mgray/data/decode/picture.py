"""How a decoded frame is turned and coloured."""

from __future__ import annotations

from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace


def quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns to the left that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def colour_of(frame: VideoFrame) -> tuple[Colorspace, ColorRange]:
    """Matrix and range of a frame's planes once they are 4:2:0; what is not said is BT.601 of limited range."""
    matrix = Colorspace.ITU709 if frame.colorspace == Colorspace.ITU709 else Colorspace.ITU601
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return matrix, ColorRange.JPEG if full else ColorRange.MPEG
