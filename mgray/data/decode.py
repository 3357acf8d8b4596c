"""Decoding and encoding of video: the only file that imports PyAV.

Ingest turns a source file into packets without a container: H.264, closed GOPs of 16, 7 B frames that nothing refers
to, so that at a stride of 2 or more most packets are never decoded. Planes are limited-range BT.601, as in most sources;
a crop is resized plane by plane, chroma from half size, and only the result is converted to RGB.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from mgray.data.clip import ClipSpec, VideoInfo
from mgray.data.shard import StoredVideo
from mgray.errors import VideoError

GOP = 16
_REPEATABLE = "mbtree=0:threads=1"
"""Without these, x264 gives other bytes from one call to the next for the same frames (seen with x264 165)."""
CODEC = {
    "name": "libx264",
    "preset": "veryfast",
    "tune": "fastdecode",
    "crf": "20",
    "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:open-gop=0:bframes=7:b-adapt=0:b-pyramid=none:{_REPEATABLE}",
}
"""Encoder and options of stored levels; part of what identifies a dataset."""


def _to_rgb() -> tuple[float, ...]:
    """Rows of the matrix from limited-range Y, Cb, Cr, 1 to full-range R, G, B (BT.601)."""
    luma, chroma = 255 / 219, 255 / 224
    rows = [(luma, chroma * cb, chroma * cr) for cb, cr in ((0.0, 1.402), (-0.344136, -0.714136), (1.772, 0.0))]
    return tuple(value for y, cb, cr in rows for value in (y, cb, cr, -16 * y - 128 * (cb + cr)))


_TO_RGB = _to_rgb()
_START_CODE = b"\x00\x00\x01"
_SLICES = (1, 5)
_TIME_BASE = Fraction(1, 25)
_CUT_OFF = 0.9
"""A file that yields less than this share of its declared time is taken as cut off."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the header of a video file says, in display orientation (rotation applied)."""

    num_frames: int
    width: int
    height: int
    fps: float
    duration_s: float


def probe_video(path: str) -> Probe:
    """Read a file's header and first frame; frames are counted by packets where the header does not say.

    Raises:
        VideoError: missing, empty, no video in it, or nothing that decodes.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        first: VideoFrame | None = None
        counted = 0
        try:
            for packet in container.demux(stream):
                counted += packet.size > 0
                if first is None:
                    first = next(iter(packet.decode()), None)
                if first is not None and stream.frames:
                    break
        except av.FFmpegError as error:
            raise _unreadable(path, f"does not decode ({_reason(error)})") from None
        if first is None:
            raise _unreadable(path, "holds no frame")
        num_frames = stream.frames or counted
        width, height = _display_size(first)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        return Probe(num_frames, width, height, fps, num_frames / fps if fps else 0.0)


def transcode(path: str, short_side: int) -> StoredVideo:
    """A source file as packets whose short side is at most `short_side` pixels (even sizes, never enlarged).

    Every frame that a sequential decoder shows is kept, in display order and upright; time stamps become frame numbers.

    Raises:
        VideoError: missing, empty, cut off, damaged, or no video in it.
    """
    encoder: _LevelEncoder | None = None
    times: list[float | None] = []
    width = height = 0
    with _opened(path) as container:
        stream = _video_stream(container, path)
        stream.codec_context.thread_count = 1
        for frame in _sequential(container, stream, path):
            if encoder is None:
                width, height = _display_size(frame)
                encoder = _LevelEncoder(*level_size(width, height, short_side), quarter_turns=_quarter_turns(frame))
            times.append(frame.time)
            encoder.add(frame)
        if encoder is None:
            raise _unreadable(path, "holds no frame")
        fps = _measured_fps(times) or float(stream.average_rate or stream.guessed_rate or 0)
        _check_whole(path, container, stream, times, fps)
    return encoder.finish(VideoInfo(len(times), width, height, fps))


def level_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height in pixels at a level: even, short side at most `short_side`."""
    scale = min(1.0, short_side / min(width, height))

    def even(size: int) -> int:
        return max(2, 2 * min(round(size * scale / 2), size // 2))

    return even(width), even(height)


def decode_clip(video: StoredVideo, spec: ClipSpec, out: npt.NDArray[np.uint8]) -> None:
    """Decode a clip into `out`: uint8 [frames, height, width, 3], RGB, cropped, resized (antialiased), mirrored.

    Only the packets that the wanted frames depend on are decoded, each once.

    Raises:
        VideoError: the packets do not decode.
    """
    assert out.shape == (spec.shape.frames, spec.shape.height, spec.shape.width, 3) and out.dtype == np.uint8
    across, down = video.width / video.source.width, video.height / video.source.height
    left, top, right, bottom = spec.box
    box = (left * across, top * down, right * across, bottom * down)
    frames = np.asarray(spec.frames)
    for index, frame in decode_frames(video, spec.frames):
        image = np.asarray(_window(frame, box, (spec.shape.width, spec.shape.height)))
        out[frames == index] = image[:, ::-1] if spec.flip else image


def decode_frames(video: StoredVideo, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted source frames at the stored size, each once, in display order.

    Raises:
        VideoError: the packets do not decode.
    """
    left = set(wanted)
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = video.extradata
    decoder.thread_count = 1
    try:
        for position in _needed(video, sorted(left)):
            packet = av.Packet(bytes(video.packet(position)))
            packet.pts = int(video.pts[position])
            yield from _taken(decoder.decode(packet), left)
        yield from _taken(decoder.decode(None), left)
    except av.FFmpegError as error:
        raise _undecodable(f"a stored video does not decode ({_reason(error)})") from None
    if left:
        raise _undecodable(f"{len(left)} frames of a stored video are missing, the first is {min(left)}")


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
            stream.codec_context.options = {"preset": "veryfast", "crf": str(crf), "x264-params": _REPEATABLE}
        for index, array in enumerate(frames):
            frame = VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = times[index] if times is not None else index
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class _LevelEncoder:
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
        packets = self._packets + self._encoder.encode(None)
        content = [bytes(packet) for packet in packets]
        return StoredVideo(
            source=source,
            width=self._encoder.width,
            height=self._encoder.height,
            extradata=self._encoder.extradata or b"",
            pts=np.array([packet.pts for packet in packets], np.int32),
            key=np.array([packet.is_keyframe for packet in packets], np.bool_),
            reference=np.array([_is_reference(item) for item in content], np.bool_),
            offsets=np.cumsum([0, *map(len, content)], dtype=np.int64),
            data=memoryview(b"".join(content)),
        )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[InputContainer]:
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise _unreadable(path, "is empty")
        container = av.open(path, "r", metadata_errors="ignore")
    except FileNotFoundError:
        raise _unreadable(path, "does not exist") from None
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, f"is no video that can be opened ({_reason(error)})") from None
    with container:
        yield container


def _video_stream(container: InputContainer, path: str) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise _unreadable(path, "holds no video stream")


def _sequential(container: InputContainer, stream: VideoStream, path: str) -> Iterator[VideoFrame]:
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise _unreadable(path, f"is cut off after {count} frames")
            for frame in packet.decode():
                count += 1
                yield frame
    except av.FFmpegError as error:
        raise _unreadable(path, f"does not decode after {count} frames ({_reason(error)})") from None


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


def _quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns to the left that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def _display_size(frame: VideoFrame) -> tuple[int, int]:
    return (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)


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


def _is_reference(packet: bytes) -> bool:
    """Whether other pictures may depend on this one: nal_ref_idc of its first slice (H.264, Annex B)."""
    at = packet.find(_START_CODE)
    while (header := packet[at + 3]) & 31 not in _SLICES:
        at = packet.find(_START_CODE, at + 3)
        assert at >= 0, "an encoded picture has a slice"
    return header & 0x60 != 0


def _needed(video: StoredVideo, wanted: Sequence[int]) -> list[int]:
    """The packets, in decoding order, that the wanted frames (rising) depend on."""
    of_frame = np.empty(len(video.pts), np.int64)
    of_frame[video.pts] = np.arange(len(video.pts))
    positions = of_frame[list(wanted)]
    keys = np.flatnonzero(video.key)
    gops = np.searchsorted(keys, positions, side="right") - 1
    needed = np.zeros(len(video.pts), np.bool_)
    for gop in np.unique(gops):
        first, last = keys[gop], positions[gops == gop].max()
        needed[first:last] |= video.reference[first:last]
    needed[positions] = True
    return [int(position) for position in np.flatnonzero(needed)]


def _taken(frames: Sequence[VideoFrame], left: set[int]) -> Iterator[tuple[int, VideoFrame]]:
    """The frames that are in `left`, which they are struck from."""
    for frame in frames:
        if frame.pts in left:
            left.remove(frame.pts)
            yield frame.pts, frame


def _window(frame: VideoFrame, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
    """A window of a yuv420p frame, resized to (width, height) with antialiasing, as RGB."""
    planes = []
    for plane, share in zip(frame.planes, (1.0, 0.5, 0.5), strict=True):
        pixels = np.frombuffer(memoryview(plane), np.uint8)
        whole = Image.frombuffer("L", (plane.width, plane.height), pixels, "raw", "L", plane.line_size, 1)
        left, top, right, bottom = (edge * share for edge in box)
        within = (left, top, min(right, plane.width), min(bottom, plane.height))
        planes.append(whole.resize(size, Image.Resampling.BILINEAR, box=within))
    return Image.merge("RGB", planes).convert("RGB", _TO_RGB)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _unreadable(path: str, problem: str) -> VideoError:
    return VideoError("data.path", path, problem, "repair the file, or take it out of the data")


def _undecodable(problem: str) -> VideoError:
    return VideoError("data.path", "shards", problem, "verify the shards, or ingest the videos again")
