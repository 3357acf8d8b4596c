"""A source file as a table of its own packets."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Sequence

import numpy as np
from av.video.frame import VideoFrame

from mgray.data.clip import VideoInfo
from mgray.data.decode.clips import decode_frames
from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.decode.picture import quarter_turns
from mgray.data.decode.source_file import SourceFile, SourcePacket
from mgray.data.decode.transcode import Ingested, transcode
from mgray.data.shards.packets import StoredVideo
from mgray.data.storage import MappedFile
from mgray.errors import VideoError

_UPSIDE_DOWN = -1


def index_packets(path: str, *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A source file as a table of its own packets, which stay where they are.

    Every frame that a sequential decoder shows can be decoded from it, with the same pixels: that is tried for a frame of each
    GOP. A file whose packets do not lie in it as the decoder takes them, or do not decode alone, is transcoded at its own size.

    Raises:
        VideoError: as `transcode`.
    """
    shown: list[int] = []
    sums: list[int] = []
    with SourceFile(path, limit_s) as source:
        for frame in source.frames():
            shown.append(frame.opaque if isinstance(frame.opaque, int) else -1)
            sums.append(_checksum(frame))
            if len(shown) == 1:
                turns = quarter_turns(frame)
        packets, codec = source.packets, source.codec
        info, probe = source.finish()
    video = _indexed(path, info, codec, packets, shown, turns)
    if video is None or _UPSIDE_DOWN in sums or not _decodes_alone(video, sums):
        return transcode(path, (min(info.width, info.height),), limit_s=limit_s)
    return Ingested((dataclasses.replace(video, data=memoryview(b"")),), probe)


def _indexed(
    path: str,
    info: VideoInfo,
    codec: tuple[str, bytes],
    packets: Sequence[SourcePacket],
    shown: Sequence[int],
    turns: int,
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
    if not inside or any(zlib.crc32(video.packet(place)) != packet.checksum for place, packet in enumerate(packets)):
        return None
    return video


def _decodes_alone(video: StoredVideo, sums: Sequence[int]) -> bool:
    """Whether frames that are decoded from the table equal those of the whole file: all of the first GOP, the last of each.

    Those of the first two are also decoded together: what a decoder kept of one must not show in the next.
    """
    starts = np.sort(video.pts[video.key]).tolist()
    lasts = [end - 1 for end in [*starts[1:], len(sums)]]
    tried = [range(lasts[0] + 1), *([last] for last in lasts[1:]), lasts[:2]]
    try:
        return all(
            _checksum(frame) == sums[number] for frames in tried for number, frame in decode_frames(video, frames)
        )
    except VideoError:
        return False


def _checksum(frame: VideoFrame) -> int:
    plane = frame.planes[0]
    if plane.line_size < 0:  # its rows lie from the bottom to the top (AMV): no clip can be cut out of it
        return _UPSIDE_DOWN
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
    return zlib.crc32(rows.tobytes())
