"""Decoding and encoding of video: the only file that imports PyAV.

Ingest turns a source file into packets without a container: H.264, closed GOPs of 32, 7 B frames that nothing refers
to, so that at a stride of 2 or more most packets are never decoded. Planes are limited-range BT.601, as in most sources.
Or it indexes the source's own packets (passthrough). Either way a clip is decoded from just the packets that its frames
depend on, cropped before anything is converted, and resized in one call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import stat
import threading
import time
import zlib
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

from mgray.data.clip import ClipSpec, VideoInfo
from mgray.data.shards.index import SourceProbe
from mgray.data.shards.manifest import SOURCE
from mgray.data.shards.packets import StoredVideo
from mgray.data.storage import READ_LIMIT_S, MappedFile, Readers, fetched
from mgray.data.window import Planes, Window
from mgray.errors import VideoError

GOP = 32
_REPEATABLE = "mbtree=0:threads=1"
"""Without these, x264 gives other bytes from one call to the next for the same frames (seen with x264 165)."""
CODEC = {
    "name": "libx264",
    "preset": "veryfast",
    "tune": "fastdecode",
    "crf": "24",
    "x264-params": (
        f"keyint={GOP}:min-keyint={GOP}:scenecut=0:open-gop=0:bframes=7:b-adapt=0:b-pyramid=none:"
        f"partitions=none:subme=7:psy=0:trellis=0:aq-mode=0:{_REPEATABLE}"
    ),
}
"""Encoder and options of stored levels; part of what identifies a dataset."""

DECODE_LIMIT_S = 600.0
"""Seconds of decoding after which ingest gives a file up."""
CLIP_LIMIT_S = 120.0
"""Seconds of CPU time after which the clips that a batch has of one video are given up. Not of wall time: how busy a machine is must
not decide what is trained on."""
MAX_SIDE = 16384
"""Pixels; larger frames are refused."""
MAX_PIXELS = 1 << 26
"""Pixels of a frame; larger ones are refused before memory is taken for them."""
_FORMATS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv", "ogg", "h264", "hevc", "m4v", "ivf", "obu", "nut",
    "mxf", "dv", "yuv4mpegpipe",
)  # fmt: skip
"""What FFmpeg may take a file for: never a playlist, which would open other files and addresses, and no image."""
_LENIENT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles that are no text are passed over; PyAV 19 has no such option."""
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
_DECODE_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
_GIVEN_UP = int.from_bytes(b"EXIT", "little")
"""FFmpeg's error number where reading took longer than allowed (AVERROR_EXIT)."""
_START_CODE = b"\x00\x00\x01"
_SLICES = (1, 5)
_DECODERS = 16
"""Open decoders that a thread keeps: one for each frame size, most often."""
_REUSABLE = "h264"
"""The codec whose decoder starts anew when it is flushed; that of MPEG-4 keeps some of what it decoded before."""
_TIME_BASE = Fraction(1, 25)
_CUT_OFF = 0.9
"""A file that yields less than this share of its declared time is taken as cut off."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """A source file as it is stored: at each level (None where a finer one serves as well), and what kind of file it was."""

    levels: tuple[StoredVideo | None, ...]
    probe: SourceProbe


def transcode(path: str, short_sides: Sequence[int], *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A source file as packets at levels of at most `short_sides` pixels (falling; even sizes, never enlarged).

    Every frame that a sequential decoder shows is kept, in display order and upright; time stamps become frame numbers.

    Args:
        limit_s: seconds after which a file is given up.

    Raises:
        VideoError: missing, empty, cut off, damaged, endless, of changing size, or no video in it.
    """
    encoders: list[_LevelEncoder | None] = []
    with _Source(path, limit_s) as source:
        for frame in source.frames():
            if not encoders:
                sizes = [level_size(source.width, source.height, side) for side in short_sides]
                encoders = [
                    _LevelEncoder(*size, quarter_turns=_quarter_turns(frame)) if size not in sizes[:number] else None
                    for number, size in enumerate(sizes)
                ]
            for encoder in encoders:
                if encoder is not None:
                    encoder.add(frame)
        info, probe = source.finish()
    return Ingested(tuple(None if encoder is None else encoder.finish(info) for encoder in encoders), probe)


def ingest_video(source: str, location: str, levels: tuple[int, ...], *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A video as `levels` store it; one behind an address is fetched first.

    Args:
        source: where the list of videos was found, with the user and options of its address.
        location: the video's own path or address.
        levels: as for `transcode`, or `SOURCE` for a table of its packets.

    Raises:
        VideoError: as `transcode`.
        OSError: it cannot be fetched, or its file system does not answer.
    """
    if "://" in source:
        with fetched(source, location) as path:
            return transcode(path, levels, limit_s=limit_s)
    read = index_packets if levels == SOURCE else functools.partial(transcode, short_sides=levels)
    return _waited_for(limit_s).start(functools.partial(read, location, limit_s=limit_s)).result()


@functools.lru_cache(maxsize=4)
def _waited_for(limit_s: float) -> Readers:
    """A thread for files that may never answer, which decoding's own limit does not see; one hung call is enough to know."""
    return Readers(1, limit_s=limit_s + READ_LIMIT_S, attempts=1)


def index_packets(path: str, *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A source file as a table of its own packets, which stay where they are.

    Every frame that a sequential decoder shows can be decoded from it, with the same pixels: that is tried for a frame of each
    GOP. A file whose packets do not lie in it as the decoder takes them, or do not decode alone, is transcoded at its own size.

    Raises:
        VideoError: as `transcode`.
    """
    shown: list[int] = []
    sums: list[int] = []
    with _Source(path, limit_s) as source:
        for frame in source.frames():
            shown.append(frame.opaque if isinstance(frame.opaque, int) else -1)
            sums.append(_checksum(frame))
            if len(shown) == 1:
                turns = _quarter_turns(frame)
        packets, codec = source.packets, source.codec
        info, probe = source.finish()
    video = _indexed(path, info, codec, packets, shown, turns)
    if video is None or not _decodes_alone(video, sums):
        return transcode(path, (min(info.width, info.height),), limit_s=limit_s)
    return Ingested((dataclasses.replace(video, data=memoryview(b"")),), probe)


@dataclass(frozen=True, slots=True)
class _Packet:
    offset: int
    size: int
    key: bool
    reference: bool


class _Source(contextlib.AbstractContextManager["_Source"]):
    """A source file that is decoded from its first frame to its last."""

    def __init__(self, path: str, limit_s: float) -> None:
        self.path = path
        self.packets: list[_Packet] = []
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
        self.codec = (context.codec.name, context.extradata or b"")

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def frames(self) -> Iterator[VideoFrame]:
        """The frames in display order; `opaque` of each is the number of the packet that it came from.

        Raises:
            VideoError: it is damaged, cut off, endless, or changes its size.
        """
        path, started = self.path, time.monotonic()
        try:
            for packet in self._container.demux(self._stream):
                count = len(self._times)
                if packet.is_corrupt:
                    raise _unreadable(path, f"is cut off after {count} frames")
                if time.monotonic() - started > self._limit_s:
                    raise _unreadable(path, f"does not decode within {self._limit_s:g} s ({count} frames in that time)")
                if packet.size:
                    packet.opaque = len(self.packets)
                    self._note(packet)
                for frame in packet.decode():
                    self._count(frame)
                    yield frame
        except av.FFmpegError as error:
            raise _unreadable(path, f"does not decode after {len(self._times)} frames ({_reason(error)})") from None

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
            reference = _is_reference(memoryview(packet), self._nal_length)
        offset = -1 if packet.pos is None else packet.pos
        self.packets.append(_Packet(offset, packet.size, packet.is_keyframe, reference))

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
            self._format = frame.format.name, 90 * _quarter_turns(frame), _colour(frame)[1] == ColorRange.JPEG
        elif size != (self.width, self.height):
            raise _unreadable(
                self.path, f"changes its size from {self.width}x{self.height} to {size[0]}x{size[1]} at frame {len(self._times)}"
            )  # fmt: skip
        self._times.append(frame.time)


def _indexed(
    path: str, info: VideoInfo, codec: tuple[str, bytes], packets: Sequence[_Packet], shown: Sequence[int], turns: int
) -> StoredVideo | None:
    """The packet table of a file; None where its packets do not show one frame each, or do not lie in the file as they are."""
    if len(set(shown)) < len(shown) or min(shown) < 0:
        return None
    pts = np.full(len(packets), -1, np.int32)
    pts[list(shown)] = np.arange(len(shown))
    key = np.array([packet.key for packet in packets], np.bool_)
    key[0] = True
    video = StoredVideo(
        source=info, width=info.width, height=info.height, codec=codec[0], extradata=codec[1], quarter_turns=turns,
        pts=pts, key=key & (pts >= 0),
        reference=np.array([packet.reference for packet in packets], np.bool_),
        offsets=np.array([packet.offset for packet in packets], np.int64),
        sizes=np.array([packet.size for packet in packets], np.int32),
        file=os.path.abspath(path), file_bytes=os.path.getsize(path), data=MappedFile(path).view,
    )  # fmt: skip
    ends = video.offsets + video.sizes
    inside = video.offsets.min() >= 0 and ends.max() <= video.file_bytes and bool(video.key.any())
    return video if inside else None


def _decodes_alone(video: StoredVideo, sums: Sequence[int]) -> bool:
    """Whether frames that are decoded from the table equal those of the whole file: all of the first GOP, the last of each."""
    starts = np.sort(video.pts[video.key]).tolist()
    ends = [*starts[1:], len(sums)]
    tried = [range(ends[0]), *([end - 1] for end in ends[1:])]
    try:
        return all(_checksum(frame) == sums[number] for gop in tried for number, frame in decode_frames(video, gop))
    except VideoError:
        return False


def _checksum(frame: VideoFrame) -> int:
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
    return zlib.crc32(rows.tobytes())


def level_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height in pixels at a level: even, short side at most `short_side`."""
    scale = min(1.0, short_side / min(width, height))

    def even(size: int) -> int:
        return max(2, 2 * min(round(size * scale / 2), size // 2))

    return even(width), even(height)


def decode_clip(
    video: StoredVideo, spec: ClipSpec, out: npt.NDArray[np.uint8], *, limit_s: float = CLIP_LIMIT_S
) -> None:
    """Decode a clip into `out`, uint8 [frames, height, width, 3]; see `decode_clips`."""
    decode_clips(video, [spec], out[None], limit_s=limit_s)


def decode_clips(
    video: StoredVideo, specs: Sequence[ClipSpec], out: npt.NDArray[np.uint8], *, limit_s: float = CLIP_LIMIT_S
) -> None:
    """Decode clips of one video and shape into `out`: uint8 [N, frames, height, width, 3], RGB, cropped, resized, mirrored.

    Only the packets that the wanted frames depend on are decoded, each once, however many clips show it. A crop begins at a
    whole pixel of the stored frame, the nearest one; its size is exact. Resizing is antialiased.

    Raises:
        VideoError: the packets do not decode, or not within `limit_s` seconds of CPU time.
    """
    shape = specs[0].shape
    assert out.shape == (len(specs), shape.frames, shape.height, shape.width, 3) and out.dtype == np.uint8
    across, down = video.width / video.source.width, video.height / video.source.height
    distinct = [sorted(set(spec.frames)) for spec in specs]
    places = [{frame: place for place, frame in enumerate(frames)} for frames in distinct]
    windows = []
    for spec, frames in zip(specs, distinct, strict=True):
        left, top, right, bottom = spec.box
        box = (left * across, top * down, right * across, bottom * down)
        windows.append(
            Window(len(frames), box, (video.width, video.height), (shape.width, shape.height), spec.flip)
        )  # fmt: skip
    colour: tuple[Colorspace, ColorRange] | None = None
    for number, frame in decode_frames(video, sorted(set().union(*distinct)), limit_s=limit_s):
        colour = colour or _colour(frame)
        planes = _planes(frame, video.quarter_turns)
        for window, place in zip(windows, places, strict=True):
            if number in place:
                window.put(place[number], planes)
    assert colour is not None, "a clip has a frame"
    for spec, frames, window, clip_THWC in zip(specs, distinct, windows, out, strict=True):
        rgb_THWC = _converted(window, len(frames), *colour)
        if len(frames) == len(spec.frames):
            window.resize(rgb_THWC, clip_THWC)
        else:  # a short video repeats frames
            shown = np.empty((len(frames), *clip_THWC.shape[1:]), np.uint8)
            window.resize(rgb_THWC, shown)
            np.take(shown, np.searchsorted(frames, spec.frames), axis=0, out=clip_THWC)


def _converted(window: Window, frames: int, matrix: Colorspace, levels: ColorRange) -> npt.NDArray[np.uint8]:
    """What a window collected as RGB: [frames, height, width, 3], contiguous."""
    picture = window.close()
    rgb = _LOCAL.reformatter.reformat(
        VideoFrame.from_numpy_buffer(picture, format="yuv420p"),
        format="rgb24",
        src_colorspace=matrix,
        src_color_range=levels,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    width, height = window.frame_size
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frames * height, : 3 * width]
    return np.ascontiguousarray(rows).reshape(frames, height, width, 3)


def decode_frames(
    video: StoredVideo, wanted: Sequence[int], *, limit_s: float = CLIP_LIMIT_S
) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted source frames at the stored size, each once, in display order.

    Raises:
        VideoError: the packets do not decode, or not within `limit_s` seconds of CPU time (with what this thread does with the frames).
    """
    left, deadline_s = set(wanted), time.thread_time() + limit_s
    key = (video.codec, video.extradata)
    # a decoder is taken out of the store while it is in use, and put back only if all went well
    decoder = _LOCAL.decoders.pop(key, None) or _decoder(*key)
    try:
        fed = -1
        for position in video.needed(sorted(left)).tolist():
            if video.file and video.key[position] and video.reference[fed + 1 : position].any():
                # a key frame of an open GOP goes on counting where the GOP before it ended: skipping to it looks like a loss
                yield from _taken(decoder.decode(None), left, video)
                if video.codec == _REUSABLE:
                    decoder.flush_buffers()
                else:
                    decoder = _decoder(*key)
            fed = position
            if time.thread_time() > deadline_s:
                raise _undecodable(
                    f"a stored video does not decode within {limit_s:g} s ({len(left)} frames were missing still)"
                )
            packet = av.Packet(bytes(video.packet(position)))
            packet.pts = packet.dts = int(video.pts[position])
            yield from _taken(decoder.decode(packet), left, video)
            if not left:
                break
        else:
            yield from _taken(decoder.decode(None), left, video)
        decoder.flush_buffers()
    except av.FFmpegError as error:
        raise _undecodable(f"a stored video does not decode ({_reason(error)})") from None
    if left:
        raise _undecodable(f"{len(left)} frames of a stored video are missing, the first is {min(left)}")
    if video.codec != _REUSABLE:
        return
    decoders = _LOCAL.decoders
    while len(decoders) >= _DECODERS:
        decoders.pop(next(iter(decoders)))
    decoders[key] = decoder


class _Local(threading.local):
    """What a thread keeps from one clip to the next: opening a decoder costs as much as decoding some frames."""

    def __init__(self) -> None:
        self.decoders: dict[tuple[str, bytes], VideoCodecContext] = {}
        self.reformatter = VideoReformatter()


_LOCAL = _Local()


def _decoder(codec: str, extradata: bytes) -> VideoCodecContext:
    try:
        decoder = av.CodecContext.create(codec, "r")
    except ValueError:
        decoder = None
    if not isinstance(decoder, VideoCodecContext):
        raise _undecodable(f"a stored video is coded as {codec!r}, which FFmpeg does not decode")
    if extradata:
        decoder.extradata = extradata
    decoder.options = _DECODE_OPTIONS
    decoder.thread_count = 1
    return decoder


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
            offsets=np.cumsum([0, *map(len, content[:-1])], dtype=np.int64),
            sizes=np.array([len(item) for item in content], np.int32),
            data=memoryview(b"".join(content)),
        )


@contextlib.contextmanager
def _opened(path: str, limit_s: float) -> Iterator[InputContainer]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(path, "is no video that can be opened (a folder, pipe or device)")
        if not status.st_size:
            raise _unreadable(path, "is empty")
        container = av.open(
            f"file:{path}", "r", **_LENIENT, options=_DECODE_OPTIONS, container_options=_OPEN_OPTIONS,
            timeout=limit_s,
        )  # fmt: skip
    except FileNotFoundError:
        raise _unreadable(path, "does not exist") from None
    except av.ArgumentError:  # also what FFmpeg says of a format that is not among _FORMATS
        raise _unreadable(path, "is no video that can be opened (of another format, or damaged)") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(path, f"is no video that can be opened ({_reason(error)})") from None
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
        context.options = _DECODE_OPTIONS
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


def _is_reference(packet: bytes | memoryview, nal_length: int = 0) -> bool:
    """Whether other pictures may depend on this one: nal_ref_idc of its first slice (H.264).

    Args:
        nal_length: bytes of the length before each NAL unit; 0 where start codes stand before them (Annex B).
    """
    content, at = bytes(packet), 0
    while at >= 0:
        if nal_length:
            start = at + nal_length
            at = start + int.from_bytes(content[at:start], "big")
        else:
            at = content.find(_START_CODE, at)
            start = at = at + len(_START_CODE) if at >= 0 else -1
        if not 0 <= start < len(content):
            break
        if content[start] & 31 in _SLICES:
            return content[start] & 0x60 != 0
    return True  # no slice in it


def _taken(frames: Sequence[VideoFrame], left: set[int], video: StoredVideo) -> Iterator[tuple[int, VideoFrame]]:
    """The frames that are in `left`, which they are struck from."""
    size = (video.height, video.width) if video.quarter_turns % 2 else (video.width, video.height)
    for frame in frames:
        if frame.pts in left:
            if (frame.width, frame.height) != size:
                raise _undecodable(
                    f"a stored video has a frame of {frame.width}x{frame.height} pixels instead of {size[0]}x{size[1]}"
                )
            left.remove(frame.pts)
            yield frame.pts, frame


def _planes(frame: VideoFrame, quarter_turns: int = 0) -> Planes:
    """Views of a frame's planes, upright; other pixel formats are converted to 4:2:0 of 8 bits first."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        frame = _LOCAL.reformatter.reformat(
            frame,
            format="yuv420p",
            src_colorspace=_colour(frame)[0],
            dst_colorspace=_colour(frame)[0],
            src_color_range=frame.color_range,
            dst_color_range=_colour(frame)[1],
            threads=1,
        )
    y, u, v = (
        np.ndarray((plane.height, plane.width), np.uint8, memoryview(plane), strides=(plane.line_size, 1))
        for plane in frame.planes
    )
    return (
        (np.rot90(y, quarter_turns), np.rot90(u, quarter_turns), np.rot90(v, quarter_turns))
        if quarter_turns
        else (y, u, v)
    )


def _colour(frame: VideoFrame) -> tuple[Colorspace, ColorRange]:
    """Matrix and range of a frame's planes once they are 4:2:0; what is not said is BT.601 of limited range."""
    matrix = Colorspace.ITU709 if frame.colorspace == Colorspace.ITU709 else Colorspace.ITU601
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return matrix, ColorRange.JPEG if full else ColorRange.MPEG


def _reason(error: Exception) -> str:
    if isinstance(error, av.FFmpegError) and error.errno == _GIVEN_UP:
        return "not read within the time that is allowed"
    return getattr(error, "strerror", None) or str(error)


def _unreadable(path: str, problem: str) -> VideoError:
    return VideoError("data.path", path, problem, "repair the file, or take it out of the data")


def _undecodable(problem: str) -> VideoError:
    return VideoError("data.path", "shards", problem, "verify the shards, or ingest the videos again")
