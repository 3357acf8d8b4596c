"""Reading a video from its place in a shard file, local or remote, and from its source file where it was passed through."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mgray.data.shards.packets import StoredVideo, parse_video
from mgray.data.storage import GAP_BYTES, PATIENCE, FileSum, Folder, LocalFile, RemoteFile
from mgray.errors import VideoError

_OPEN_SHARDS = 256
_REMOTE_SHARDS = 1 << 16
"""A remote file that is open holds no more than its size, which took a request to learn."""


def read_video(
    root: str, file: FileSum, offset: int, head: int, length: int, frames: Sequence[int] | None
) -> StoredVideo:
    """A video from its place in a shard; only the packets that `frames` depend on, unless that is None.

    Raises:
        ArrowInvalid: its bytes are damaged.
        EOFError: the shard is not as long as it was.
        OSError: it cannot be read.
        VideoError: its source file is not as it was.
    """
    shard = _open_shard(root, file)
    content = np.zeros(length, np.uint8)  # pages of it that nothing is read into are never touched
    whole = frames is None or length <= GAP_BYTES
    shard.read_into(content, offset, [(0, length if whole else head)])
    video = parse_video(pa.py_buffer(content))
    if frames is not None and not whole and not video.file:
        needed = video.needed(frames)
        begins = head + video.offsets[needed]
        wanted = zip(begins.tolist(), (begins + video.sizes[needed]).tolist(), strict=True)
        shard.read_into(content, offset, wanted)
    return _from_source(video, frames) if video.file else video


@functools.lru_cache(maxsize=64)
def folder_of(root: str) -> Folder:
    """The folder that clips are read from, looked up once."""
    return Folder.of(root, PATIENCE)


def _open_shard(root: str, file: FileSum) -> LocalFile | RemoteFile:
    return _local_shard(root, file) if folder_of(root).is_local else _remote_shard(root, file)


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _local_shard(root: str, file: FileSum) -> LocalFile:
    shard = LocalFile(Folder.of(root).join(file.name))
    if len(shard) != file.num_bytes:
        raise EOFError(f"it has {len(shard)} bytes instead of {file.num_bytes}")
    return shard


@functools.lru_cache(maxsize=_REMOTE_SHARDS)
def _remote_shard(root: str, file: FileSum) -> RemoteFile:
    return RemoteFile(folder_of(root), file.name, file.num_bytes)


def _from_source(video: StoredVideo, frames: Sequence[int] | None) -> StoredVideo:
    """The video with the packets that `frames` depend on (all, without it), which are in its source file.

    Raises:
        VideoError: the file is not there any more, or is another.
        OSError: it cannot be read.
    """
    try:
        source = LocalFile(video.file)
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise VideoError(
            "data.path",
            video.file,
            f"cannot be read any more ({error.strerror})",
            "put it back, or delete the shards and ingest again",
        ) from None
    changed = VideoError("data.path", video.file, "has changed since it was ingested", "ingest the videos again")
    if len(source) != video.file_bytes:
        raise changed
    needed = np.arange(len(video.pts)) if frames is None else video.needed(frames)
    begins = video.offsets[needed]
    ends = begins + video.sizes[needed]
    order = np.argsort(begins, kind="stable")
    first = int(begins.min())
    data = np.zeros(int(ends.max()) - first, np.uint8)
    wanted = zip((begins[order] - first).tolist(), (ends[order] - first).tolist(), strict=True)
    try:
        source.read_into(data, first, wanted)
    except EOFError:
        raise changed from None
    return dataclasses.replace(video, offsets=video.offsets - first, data=data.data)


def source_files(shard: pa.Buffer) -> list[tuple[str, int]]:
    """Path and bytes of the source files that the videos of a whole shard are in; none for those that are in the shard itself."""
    with pa.ipc.open_file(shard) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    found = [(batch["file"][0].as_py(), batch["file_bytes"][0].as_py()) for batch in batches]
    return [(path, num_bytes) for path, num_bytes in found if path]


def sizes_or_none(paths: Sequence[str]) -> list[int | None]:
    """Bytes of local files; None of those that are not there."""
    sizes: list[int | None] = []
    for path in paths:
        try:
            sizes.append(os.path.getsize(path))
        except (FileNotFoundError, NotADirectoryError):
            sizes.append(None)
    return sizes
