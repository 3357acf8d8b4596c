"""Stored packets: one video at one level as a shard holds it, and what is checked of it before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mgray.data.clip import VideoInfo

VIDEO_SCHEMA = pa.schema(
    [
        ("source_frames", pa.int32()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("quarter_turns", pa.int32()),
        ("file", pa.string()),
        ("file_bytes", pa.int64()),
        ("extradata", pa.binary()),
        ("pts", pa.list_(pa.int32())),
        ("key", pa.list_(pa.uint8())),
        ("reference", pa.list_(pa.uint8())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int32())),
        ("data", pa.large_binary()),
    ]
)
"""The columns of a shard file; a record batch has one row, which is a video."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredVideo:
    """One video at one level: packets in decoding order, without a container.

    Packet i is `data[offsets[i]:offsets[i] + sizes[i]]`; it shows source frame `pts[i]` (display order, from 0), or none where
    that is -1. A GOP begins at each `key` packet; packets that are no `reference` may be left out.
    """

    source: VideoInfo
    width: int
    """Of a stored frame in display orientation, pixels."""
    height: int
    extradata: bytes
    pts: npt.NDArray[np.int32]
    key: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    data: memoryview
    codec: str = "h264"
    quarter_turns: int = 0
    """Turns to the left that bring a stored frame upright."""
    file: str = ""
    """The source file that the packets are in; empty where they are in `data` already."""
    file_bytes: int = 0

    def packet(self, index: int) -> memoryview:
        """The bytes of a packet."""
        offset = self.offsets[index]
        return self.data[offset : offset + self.sizes[index]]

    def needed(self, frames: Sequence[int]) -> npt.NDArray[np.int64]:
        """The packets, in decoding order, that some source frames depend on: for each GOP its references up to the last of them.

        A frame that is shown before its own GOP's key frame (open GOPs) is decoded from the key before that.
        """
        of_frame = np.full(self.source.num_frames, -1, np.int64)
        shown = self.pts >= 0
        of_frame[self.pts[shown]] = np.flatnonzero(shown)
        wanted = np.asarray(frames, np.int64)
        positions = of_frame[wanted]
        keys = np.flatnonzero(self.key)
        own = np.searchsorted(keys, positions, side="right") - 1
        gops = np.maximum(np.minimum(own, np.searchsorted(self.pts[keys], wanted, side="right") - 1), 0)
        last: dict[int, int] = {}
        for gop, position in zip(gops.tolist(), positions.tolist(), strict=True):
            last[gop] = max(position, last.get(gop, 0))
        needed = np.zeros(len(self.pts), np.bool_)
        for gop, position in last.items():
            first = keys[gop]
            needed[first:position] |= self.reference[first:position]
        needed[positions] = True
        return np.flatnonzero(needed)

    def to_batch(self) -> pa.RecordBatch:
        """One row of the shard schema."""
        row: list[Any] = [
            self.source.num_frames, self.source.width, self.source.height, self.source.fps,
            self.width, self.height, self.codec, self.quarter_turns, self.file, self.file_bytes, self.extradata,
            self.pts, self.key.astype(np.uint8), self.reference.astype(np.uint8), self.offsets, self.sizes, self.data,
        ]  # fmt: skip
        return pa.record_batch([pa.array([v], f.type) for v, f in zip(row, VIDEO_SCHEMA, strict=True)], VIDEO_SCHEMA)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> StoredVideo:
        """The video of a row that `to_batch` made; the packets stay in the batch's memory."""

        columns = dict(zip(batch.schema.names, batch.columns, strict=True))

        def scalar(name: str) -> Any:
            return columns[name][0].as_py()

        def array(name: str) -> npt.NDArray[Any]:
            return np.asarray(columns[name].values.to_numpy(zero_copy_only=True))

        _, bounds, packets = columns["data"].buffers()  # a scalar of it would be a copy
        begin, end = np.frombuffer(bounds, np.int64, 2, 8 * columns["data"].offset).tolist()

        return cls(
            source=VideoInfo(scalar("source_frames"), scalar("source_width"), scalar("source_height"), scalar("fps")),
            width=scalar("width"),
            height=scalar("height"),
            codec=scalar("codec"),
            quarter_turns=scalar("quarter_turns"),
            file=scalar("file"),
            file_bytes=scalar("file_bytes"),
            extradata=scalar("extradata"),
            pts=array("pts"),
            key=array("key").view(np.bool_),
            reference=array("reference").view(np.bool_),
            offsets=array("offsets"),
            sizes=array("sizes"),
            data=memoryview(packets.slice(begin, end - begin)) if end > begin else memoryview(b""),
        )


def parse_video(content: pa.Buffer) -> StoredVideo:
    """The video of a serialised record batch.

    Raises:
        ArrowInvalid: the batch is damaged, or is no video's.
    """
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(content), VIDEO_SCHEMA)
        batch.validate(full=True)  # offsets out of bounds would end the process
        if batch.num_rows != 1 or any(column.null_count for column in batch.columns):
            raise pa.ArrowInvalid("no row of a video")
        video = StoredVideo.from_batch(batch)
    except (OSError, ValueError) as error:
        raise pa.ArrowInvalid(str(error)) from None
    _check_table(video)
    return video


def _check_table(video: StoredVideo) -> None:
    """Raise ArrowInvalid where a packet table contradicts itself."""
    columns = (video.pts, video.key, video.reference, video.offsets, video.sizes)
    num_bytes = video.file_bytes if video.file else len(video.data)
    frames = video.source.num_frames
    shown = video.pts[video.pts >= 0]
    whole = (
        len({len(column) for column in columns}) == 1
        and 0 < len(shown) == frames
        and shown.max() < frames
        and np.bincount(shown, minlength=frames).max() == 1
        and video.key.view(np.uint8).max() == 1  # a byte that is neither 0 nor 1 is no truth value
        and video.reference.view(np.uint8).max() < 2
        and min(video.offsets.min(), video.sizes.min()) >= 0
        and video.offsets.max() <= num_bytes
        and (video.offsets + video.sizes).max() <= num_bytes
        and min(video.width, video.height, video.source.width, video.source.height) > 0
        and 0 <= video.quarter_turns < 4
    )
    if not whole:
        raise pa.ArrowInvalid("its packet table contradicts itself")
