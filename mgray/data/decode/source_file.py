"""A source file that is decoded from its first frame to its last, or refused in the user's words."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from mgray.data.clip import VideoInfo
from mgray.data.decode.h264 import is_reference
from mgray.data.decode.limits import DECODE_OPTIONS, DISK_ERRORS, MAX_PIXELS, MAX_SIDE, reason
from mgray.data.decode.picture import colour_of, quarter_turns
from mgray.data.shards.index import SourceProbe
from mgray.errors import SlowVideoError, UnreadVideoError, VideoError

_FORMATS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv", "ogg", "h264", "hevc", "m4v", "ivf", "obu", "nut",
    "mxf", "dv", "yuv4mpegpipe",
)  # fmt: skip
"""What FFmpeg may take a file for: never a playlist, which would open other files and addresses, and no image."""
_LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles that are no text are passed over; PyAV 19 has no such option."""
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
_BLOCK_HEAD = 4
"""Bytes of a Matroska block before its frame: track, time and flags. FFmpeg gives the place of the block."""
_CUT_OFF = 0.9
"""A file that yields less than this share of its declared time is taken as cut off."""


@dataclass(frozen=True, slots=True)
class SourcePacket:
    """The place of a packet in the file (bytes; offset -1 where FFmpeg does not tell), and what depends on it."""

    offset: int
    size: int
    checksum: int
    """CRC-32 of its bytes as the decoder takes them, which need not be those at that place."""
    key: bool
    reference: bool


class SourceFile(contextlib.AbstractContextManager["SourceFile"]):
    """A source file that is decoded from its first frame to its last."""

    def __init__(self, path: str, limit_s: float) -> None:
        self.path = path
        self.packets: list[SourcePacket] = []
        self.width = self.height = 0
        self._limit_s = limit_s
        self._times: list[float | None] = []
        self._format: tuple[str, int, bool] | None = None
        self._exit = contextlib.ExitStack()
        self._container = self._exit.enter_context(_opened(path, limit_s))
        self._stream = _video_stream(self._container, path)
        context = self._stream.codec_context
        context.thread_count = 1
        context.copy_opaque = True
        self._block_head = _BLOCK_HEAD if "matroska" in self._container.format.name.split(",") else 0
        self.codec = (context.codec.name, context.extradata or b"")

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def frames(self) -> Iterator[VideoFrame]:
        """The frames in display order; `opaque` of each is the number of the packet that it came from.

        Raises:
            SlowVideoError: it does not decode within the limit, in seconds of CPU time without what is done with its frames.
            UnreadVideoError: its disk fails.
            VideoError: it is damaged, cut off, or changes its size.
        """
        path, started = self.path, time.thread_time()
        try:
            for packet in self._container.demux(self._stream):
                count = len(self._times)
                if packet.is_corrupt:
                    raise _unreadable(path, f"is cut off after {count} frames")
                if time.thread_time() - started > self._limit_s:
                    raise slow(path, f"does not decode within {self._limit_s:g} s ({count} frames in that time)")
                if packet.size:
                    packet.opaque = len(self.packets)
                    self._note(packet)
                for frame in packet.decode():
                    self._count(frame)
                    paused = time.thread_time()
                    yield frame
                    started += time.thread_time() - paused
        except av.FFmpegError as error:
            raise _failed(path, f"does not decode after {len(self._times)} frames", error) from None

    def finish(self) -> tuple[VideoInfo, SourceProbe]:
        """What the file turned out to be.

        Raises:
            VideoError: it holds no frame, or fewer than its header promises.
        """
        if self._format is None:
            raise _unreadable(self.path, "holds no frame")
        stream = self._stream
        fps = _measured_fps(self._times) or float(stream.average_rate or stream.guessed_rate or 0)
        _check_whole(self.path, self._container, stream, self._times, fps)
        pixel_format, rotation, full_range = self._format
        probe = SourceProbe(
            codec=stream.codec_context.codec.canonical_name, pixel_format=pixel_format, rotation=rotation,
            full_range=full_range, num_bytes=os.path.getsize(self.path),
        )  # fmt: skip
        return VideoInfo(len(self._times), self.width, self.height, fps), probe

    def _note(self, packet: av.Packet[Any]) -> None:
        reference = True
        if self.codec[0] == "h264":
            reference = is_reference(memoryview(packet), self._nal_length)
        offset = -1 if packet.pos is None else packet.pos + self._block_head
        self.packets.append(SourcePacket(offset, packet.size, zlib.crc32(packet), packet.is_keyframe, reference))

    @functools.cached_property
    def _nal_length(self) -> int:
        """Bytes of the length before each NAL unit (avcC); 0 where start codes stand before them."""
        extradata = self.codec[1]
        return (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0

    def _count(self, frame: VideoFrame) -> None:
        size = _display_size(frame)
        if self._format is None:
            _check_size(self.path, *size)
            self.width, self.height = size
            self._format = frame.format.name, 90 * quarter_turns(frame), colour_of(frame)[1] == ColorRange.JPEG
        elif size != (self.width, self.height):
            raise _unreadable(
                self.path, f"changes its size from {self.width}x{self.height} to {size[0]}x{size[1]} at frame {len(self._times)}"
            )  # fmt: skip
        self._times.append(frame.time)


@contextlib.contextmanager
def _opened(path: str, limit_s: float) -> Iterator[InputContainer]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(path, "is no video that can be opened (a folder, pipe or device)")
        if not status.st_size:
            raise _unreadable(path, "is empty")
        container = av.open(
            f"file:{path}", "r", **_LENIENT, options=DECODE_OPTIONS, container_options=_OPEN_OPTIONS,
            timeout=limit_s,
        )  # fmt: skip
    except FileNotFoundError:
        raise _unreadable(path, "does not exist") from None
    except av.ArgumentError:  # also what FFmpeg says of a format that is not among _FORMATS
        raise _unreadable(path, "is no video that can be opened (of another format, or damaged)") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _failed(path, "is no video that can be opened", error) from None
    with container:
        yield container


def _video_stream(container: InputContainer, path: str) -> VideoStream:
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        context = stream.codec_context
        if context is None:
            raise _unreadable(path, "is coded in a way that FFmpeg has no decoder for")
        _check_size(path, context.width, context.height)
        context.options = DECODE_OPTIONS
        return stream
    raise _unreadable(path, "holds no video stream")


def _check_size(path: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _unreadable(
            path, f"has frames of {width}x{height} pixels, more than {MAX_SIDE} on a side or {MAX_PIXELS} in all"
        )


def _check_whole(
    path: str, container: InputContainer, stream: VideoStream, times: Sequence[float | None], fps: float
) -> None:
    """Raise where fewer frames came than the header promises, and time is missing too (edit lists hide only frames)."""
    if stream.frames <= len(times) or not fps:
        return
    declared = [stream.duration * float(stream.time_base)] if stream.duration and stream.time_base else []
    declared += [container.duration / av.time_base] if container.duration else []
    if declared and len(times) / fps < _CUT_OFF * min(declared):
        raise _unreadable(path, f"is cut off: {len(times)} of {stream.frames} frames decode")


def _measured_fps(times: Sequence[float | None]) -> float:
    """Mean rate over the time stamps; 0 where there are too few, or none."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(known) < 2 or known[-1] <= known[0]:
        return 0.0
    return (len(known) - 1) / (known[-1] - known[0])


def _display_size(frame: VideoFrame) -> tuple[int, int]:
    return (frame.height, frame.width) if quarter_turns(frame) % 2 else (frame.width, frame.height)


def slow(path: str, problem: str) -> SlowVideoError:
    """The error of a video that takes too long."""
    return SlowVideoError(
        "data.path", path, f"{problem}; mgray ingest with a larger --limit-s allows more", "or take it out of the data"
    )


def _failed(path: str, problem: str, error: Exception) -> VideoError:
    kind = UnreadVideoError if getattr(error, "errno", 0) in DISK_ERRORS else VideoError
    return kind("data.path", path, f"{problem} ({reason(error)})", "repair the file, or take it out of the data")


def _unreadable(path: str, problem: str) -> VideoError:
    return VideoError("data.path", path, problem, "repair the file, or take it out of the data")
