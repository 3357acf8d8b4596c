"""Writing a shard file: its name, its content, and the place of each video in it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from mgray.data.shards.index import Extent
from mgray.data.shards.packets import VIDEO_SCHEMA, StoredVideo
from mgray.data.storage import FileSum, Folder

_ALIGNMENT = 8
"""Bytes that the buffers of an Arrow IPC message are padded to."""


def shard_name(level: str, shard: int) -> str:
    """The path of a shard file below the dataset's folder."""
    return f"{level}/{shard:05d}.arrow"


def write_shard(folder: Folder, name: str, videos: Sequence[StoredVideo | None]) -> tuple[FileSum, tuple[Extent, ...]]:
    """Write videos as one shard file, and tell where each lies in it; None takes no room."""
    sink = pa.BufferOutputStream()
    extents = []
    with pa.ipc.new_file(sink, VIDEO_SCHEMA) as writer:
        for video in videos:
            if video is None:
                extents.append(Extent(offset=0, head=0, length=0))
                continue
            batch = video.to_batch()
            writer.write_batch(batch)
            length = pa.ipc.get_record_batch_size(batch)
            head = length - -(-len(video.data) // _ALIGNMENT) * _ALIGNMENT
            extents.append(Extent(offset=sink.tell() - length, head=head, length=length))
    content = sink.getvalue()
    for extent, video in zip(extents, videos, strict=True):
        if video is not None:
            start = extent.offset + extent.head
            assert content[start : start + len(video.data)] == pa.py_buffer(video.data), (
                "the packets end a record batch"
            )
    return folder.write(name, content), tuple(extents)
