"""Encoding: frames to the packets of a stored level, or to a video file."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from mgray.data.clip import VideoInfo
from mgray.data.decode.h264 import is_reference
from mgray.data.shards.packets import StoredVideo

GOP = 32
"""Frames from one key frame of a stored level to the next."""
REPEATABLE = "mbtree=0:threads=1"
"""Without these, x264 gives other bytes from one call to the next for the same frames (seen with x264 165)."""
CODEC = {
    "name": "libx264",
    "preset": "veryfast",
    "tune": "fastdecode",
    "crf": "24",
    "x264-params": (
        f"keyint={GOP}:min-keyint={GOP}:scenecut=0:open-gop=0:bframes=7:b-adapt=0:b-pyramid=none:"
        f"partitions=none:subme=7:psy=0:trellis=0:aq-mode=0:{REPEATABLE}"
    ),
}
"""Encoder and options of stored levels; part of what identifies a dataset."""
_TIME_BASE = Fraction(1, 25)


class LevelEncoder:
    """Encodes frames of one video at one level, in the order they come."""

    def __init__(self, width: int, height: int, quarter_turns: int) -> None:
        encoder = av.CodecContext.create(CODEC["name"], "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.width, encoder.height = width, height
        encoder.pix_fmt = "yuv420p"
        encoder.color_range = ColorRange.MPEG
        encoder.time_base = _TIME_BASE
        encoder.framerate = 1 / _TIME_BASE
        encoder.thread_count = 1
        encoder.flags |= Flags.global_header
        encoder.options = {key: value for key, value in CODEC.items() if key != "name"}
        self._encoder = encoder
        self._turns = quarter_turns
        self._scaled = (height, width) if quarter_turns % 2 else (width, height)
        self._reformatter = VideoReformatter()
        self._packets: list[av.Packet[Any]] = []
        self._added = 0

    def add(self, frame: VideoFrame) -> None:
        """Scale a frame, bring it upright, and encode it."""
        scaled = self._reformatter.reformat(
            frame,
            *self._scaled,
            format="yuv420p",
            src_color_range=frame.color_range,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        )
        picture = _turned(scaled, self._turns) if self._turns else scaled
        picture.pts = self._added
        picture.time_base = _TIME_BASE
        picture.pict_type = PictureType.NONE
        self._packets += self._encoder.encode(picture)
        self._added += 1

    def finish(self, source: VideoInfo) -> StoredVideo:
        """The packets of all frames that were added."""
        packets = self._packets + self._encoder.encode(None)
        content = [bytes(packet) for packet in packets]
        return StoredVideo(
            source=source,
            width=self._encoder.width,
            height=self._encoder.height,
            extradata=self._encoder.extradata or b"",
            pts=np.array([packet.pts for packet in packets], np.int32),
            key=np.array([packet.is_keyframe for packet in packets], np.bool_),
            reference=np.array([is_reference(item) for item in content], np.bool_),
            offsets=np.cumsum([0, *map(len, content[:-1])], dtype=np.int64),
            sizes=np.array([len(item) for item in content], np.int32),
            data=memoryview(b"".join(content)),
        )


def _turned(frame: VideoFrame, quarter_turns: int) -> VideoFrame:
    """A yuv420p frame turned to the left."""
    planes = [
        np.rot90(
            np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width],
            quarter_turns,
        )
        for plane in frame.planes
    ]
    height, width = planes[0].shape
    stacked = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
    return VideoFrame.from_ndarray(stacked, format="yuv420p")


def encode_frames(
    path: str,
    frames: npt.NDArray[np.uint8],
    *,
    fps: Fraction | int = 25,
    crf: int = 18,
    gop: int = 12,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: Sequence[int] | None = None,
) -> None:
    """Write frames (uint8 [T, H, W, 3], RGB) as a video file whose container follows from its ending.

    Args:
        times: when each frame is shown, in frames of `fps`, rising; one after the other without it.
    """
    rate = Fraction(fps)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = 1 / rate
        if codec == "libx264":
            stream.codec_context.options = {"preset": "veryfast", "crf": str(crf), "x264-params": REPEATABLE}
        for index, array in enumerate(frames):
            frame = VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = times[index] if times is not None else index
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
