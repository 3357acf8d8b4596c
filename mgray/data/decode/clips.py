"""Clips: decoded from just the packets that their frames depend on, cropped before anything is converted, resized in one call."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from mgray.data.clip import ClipSpec
from mgray.data.decode.limits import CLIP_LIMIT_S, DECODE_OPTIONS, reason
from mgray.data.decode.picture import colour_of
from mgray.data.shards.packets import StoredVideo
from mgray.data.window import Planes, Window
from mgray.errors import VideoError

_DECODERS = 16
"""Open decoders that a thread keeps: one for each frame size, most often."""
_PICTURE_PIXELS = 1 << 27
"""Of what is converted at once; FFmpeg takes some 255 million."""
_REUSABLE = "h264"
"""The codec whose decoder starts anew when it is flushed; that of MPEG-4 keeps some of what it decoded before."""


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
        colour = colour or colour_of(frame)
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
    width, height = window.frame_size
    pieces = []
    for count, picture in window.close(_PICTURE_PIXELS):
        rgb = _LOCAL.reformatter.reformat(
            VideoFrame.from_numpy_buffer(picture, format="yuv420p"),
            format="rgb24",
            src_colorspace=matrix,
            src_color_range=levels,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pieces.append(rows[: count * height, : 3 * width])
    whole = np.ascontiguousarray(pieces[0]) if len(pieces) == 1 else np.concatenate(pieces)
    return whole.reshape(frames, height, width, 3)


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
            # FFmpeg takes a PNG that is no key frame for what has changed since the one before
            packet.is_keyframe = bool(video.key[position])
            yield from _taken(decoder.decode(packet), left, video)
            if not left:
                break
        else:
            yield from _taken(decoder.decode(None), left, video)
        decoder.flush_buffers()
    except av.FFmpegError as error:
        raise _undecodable(f"a stored video does not decode ({reason(error)})") from None
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
    decoder.options = DECODE_OPTIONS
    decoder.thread_count = 1
    return decoder


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
            src_colorspace=colour_of(frame)[0],
            dst_colorspace=colour_of(frame)[0],
            src_color_range=frame.color_range,
            dst_color_range=colour_of(frame)[1],
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


def _undecodable(problem: str) -> VideoError:
    return VideoError("data.path", "shards", problem, "verify the shards, or ingest the videos again")
