"""Shards: an ingested dataset on disk, and random access to any video in it.

A dataset is a folder, local or any address that pyarrow.fs knows:

    manifest.json       version, levels, codec, classes, counts, checksums, what was left out
    index.arrow         one row per video: where it lies at each level, label or labels, size, rate, probe; train before val
    256/00000.arrow     shards of the level whose short side is 256: one record batch per video
    128/00000.arrow     a coarser level; videos that are no larger than it are not in it

Shards are Arrow IPC files, so any Arrow tool reads them. The index holds the place of each record batch in its file, and how
much of it comes before the packets. One clip therefore costs one slice of a memory-mapped local file (nothing is copied), or two
rounds of range requests of a remote one (the packet table, then the packets that are needed), and no footer is read. Parquet was
the alternative: its smallest unit, the page of a row group, is decompressed and copied, and its footer must be read first.

Where sources are passed through, the level `source` holds packet tables only; the packets stay in the source files.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mgray.data.annotations import Action
from mgray.data.clip import VideoInfo
from mgray.data.manifest import MANIFEST, Manifest
from mgray.data.storage import (
    GAP_BYTES,
    PATIENCE,
    FileSum,
    Folder,
    LocalFile,
    Readers,
    Reading,
    RemoteFile,
    one_line,
    unreadable,
)
from mgray.errors import DataError, VideoError

INDEX = "index.arrow"
SPLITS = ("train", "val")
_OPEN_SHARDS = 256
_REMOTE_SHARDS = 1 << 16
"""A remote file that is open holds no more than its size, which took a request to learn."""
_READERS = 16
"""Remote videos that a process reads at once: they wait for the network, not for a CPU."""
_READ_AHEAD = 2 * _READERS
"""Remote videos of a block that are read, or being read, before they are decoded."""
_LOCAL_AHEAD = 2

_VIDEO_SCHEMA = pa.schema(
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
_ACTION_COLUMNS = (
    ("labels", "label", pa.int32()),
    ("starts_s", "start_s", pa.float64()),
    ("ends_s", "end_s", pa.float64()),
)
_ALIGNMENT = 8
"""Bytes that the buffers of an Arrow IPC message are padded to."""


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
        return pa.record_batch([pa.array([v], f.type) for v, f in zip(row, _VIDEO_SCHEMA, strict=True)], _VIDEO_SCHEMA)

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """The place of a video's record batch in a shard file (bytes); length 0 where the level does not hold the video."""

    offset: int
    head: int
    """Bytes before the packets."""
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceProbe:
    """What kind of file a video came from."""

    codec: str
    pixel_format: str
    rotation: int
    """Degrees that its frames are turned by, counter-clockwise."""
    full_range: bool
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """A video's row of the index; `extents` are its places at each level, all in shards of number `shard`."""

    split: str
    path: str
    label: int
    """-1 in a multi-label dataset."""
    group: str
    num_frames: int
    width: int
    height: int
    fps: float
    probe: SourceProbe
    shard: int
    extents: tuple[Extent, ...]
    actions: tuple[Action, ...] = ()
    """What it shows and when, in a multi-label dataset."""


@dataclass(frozen=True, slots=True, eq=False)
class _Actions:
    """Those of video i are first[i] to first[i + 1]."""

    first: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    start_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    path: pa.Array
    group: pa.Array
    label: npt.NDArray[np.int32]
    num_frames: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    fps: npt.NDArray[np.float64]
    shard: npt.NDArray[np.int32]
    offset: tuple[npt.NDArray[np.int64], ...]
    """Per level, as the two below."""
    head: tuple[npt.NDArray[np.int64], ...]
    length: tuple[npt.NDArray[np.int64], ...]
    actions: _Actions | None
    """In a multi-label dataset."""


def shard_name(level: str, shard: int) -> str:
    return f"{level}/{shard:05d}.arrow"


def write_shard(folder: Folder, name: str, videos: Sequence[StoredVideo | None]) -> tuple[FileSum, tuple[Extent, ...]]:
    """Write videos as one shard file, and tell where each lies in it; None takes no room."""
    sink = pa.BufferOutputStream()
    extents = []
    with pa.ipc.new_file(sink, _VIDEO_SCHEMA) as writer:
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


def write_index(
    folder: Folder, rows: Sequence[IndexRow], levels: Sequence[str], *, multi_label: bool = False
) -> FileSum:
    """Write the index of `rows`, whose training videos come before the validation videos."""

    def column(name: str, kind: pa.DataType, of: str = "") -> pa.Array:
        return pa.array([getattr(getattr(row, of) if of else row, name) for row in rows], kind)

    columns = {
        "split": column("split", pa.string()),
        "path": column("path", pa.string()),
        "group": column("group", pa.string()),
        "label": column("label", pa.int32()),
        "num_frames": column("num_frames", pa.int32()),
        "width": column("width", pa.int32()),
        "height": column("height", pa.int32()),
        "fps": column("fps", pa.float64()),
        "codec": column("codec", pa.string(), "probe"),
        "pixel_format": column("pixel_format", pa.string(), "probe"),
        "rotation": column("rotation", pa.int32(), "probe"),
        "full_range": column("full_range", pa.bool_(), "probe"),
        "num_bytes": column("num_bytes", pa.int64(), "probe"),
        "shard": column("shard", pa.int32()),
    }
    for number, level in enumerate(levels):
        for field in ("offset", "head", "length"):
            columns[f"{field}_{level}"] = pa.array([getattr(row.extents[number], field) for row in rows], pa.int64())
    if multi_label:
        for name, field, kind in _ACTION_COLUMNS:
            values = [[getattr(action, field) for action in row.actions] for row in rows]
            columns[name] = pa.array(values, pa.list_(kind))
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return folder.write(INDEX, sink.getvalue())


def content_digest(
    classes: Sequence[str], rows: Sequence[IndexRow], levels: Sequence[str], codec: Mapping[str, str]
) -> str:
    """SHA-256 of what is trained on, whatever the number of shards and wherever they lie."""
    digest = hashlib.sha256(json.dumps([list(classes), list(levels), dict(sorted(codec.items()))]).encode())
    for row in rows:
        sample: list[Any] = [row.split, row.path, row.label, row.num_frames, row.width, row.height, row.fps]
        if row.actions:
            sample.append([[action.label, action.start_s, action.end_s] for action in row.actions])
        digest.update(json.dumps(sample).encode())
    return digest.hexdigest()


class ShardSet:
    """An ingested dataset. Pickles as its path and checksum; each process reads the index once and keeps shards open."""

    def __init__(self, root: str, manifest_text: str) -> None:
        """Use `ShardSet.open`; `manifest_text` is the content of the manifest under `root`."""
        self.root = root
        self.manifest = Manifest.from_json(manifest_text, root)
        self._text_digest = hashlib.sha256(manifest_text.encode()).hexdigest()
        self._first = {"train": 0, "val": self.manifest.counts["train"]}

    @classmethod
    def open(cls, path: str) -> ShardSet:
        """The dataset in the folder `path` (local, or an address that pyarrow.fs knows).

        Raises:
            DataError: no such folder or no answer, no manifest in it, one of an unknown version, or a shard is missing or cut off.
        """
        folder = Folder.of(path)
        shards = cls(path, _manifest_text(folder, path))
        for level in shards.manifest.levels:
            try:
                sizes = folder.sizes(level.name)
            except OSError as error:
                raise unreadable(path, error) from None
            for file in level.shards:
                _check_size(path, file, sizes.get(file.name))
        return shards

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return _reopen, (self.root, self._text_digest)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def num_samples(self, split: str) -> int:
        """Videos of `split`, which is "train" or "val"."""
        return self.manifest.counts[split]

    def info(self, split: str, sample: int) -> VideoInfo:
        """Frames, size and rate of the source video."""
        row, index = self._row(split, sample), self._index
        return VideoInfo(
            int(index.num_frames[row]), int(index.width[row]), int(index.height[row]), float(index.fps[row])
        )

    def label(self, split: str, sample: int) -> int:
        """The video's class, an index into `classes`."""
        return int(self._index.label[self._row(split, sample)])

    @property
    def multi_label(self) -> bool:
        """Whether videos have any number of classes each, which `shown` tells, rather than the one that `label` does."""
        return self.manifest.multi_label

    def shown(
        self, split: str, sample: int, begin_s: float = -math.inf, end_s: float = math.inf
    ) -> npt.NDArray[np.int64]:
        """1 for each class that a video of a multi-label dataset shows between two times, both included; int64 [classes]."""
        actions = self._index.actions
        assert actions is not None, "the dataset has one class for each video"
        row = self._row(split, sample)
        own = slice(int(actions.first[row]), int(actions.first[row + 1]))
        overlaps = (actions.start_s[own] <= end_s) & (actions.end_s[own] >= begin_s)
        shown_K = np.zeros(len(self.classes), np.int64)
        shown_K[actions.label[own][overlaps]] = 1
        return shown_K

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """The classes of all videos of a split, int32 [num_samples]."""
        return self._index.label[self._first[split] : self._first[split] + self.num_samples(split)]

    def path(self, split: str, sample: int) -> str:
        """The source's path as its list or folder names it, for messages."""
        return str(self._index.path[self._row(split, sample)].as_py())

    def group(self, split: str, sample: int) -> str:
        """The group that is never on both sides of a split, such as a speaker."""
        return str(self._index.group[self._row(split, sample)].as_py())

    def level_for(self, split: str, sample: int, scale: float, enlarge: float) -> int:
        """The coarsest level that a window may be read from, an index into the manifest's levels.

        Args:
            scale: pixels of the finished window for one pixel of the source.
            enlarge: how much a level other than the finest may be enlarged; 1 takes only levels that cover the window.
        """
        row, index = self._row(split, sample), self._index
        short = min(int(index.width[row]), int(index.height[row]))
        levels = self.manifest.levels
        for number in reversed(range(1, len(levels))):
            if index.length[number][row] and levels[number].short_side * enlarge >= scale * short * (1 - 1e-9):
                return number
        return 0

    def video(self, split: str, sample: int, level: int = 0, frames: Sequence[int] | None = None) -> StoredVideo:
        """The packets of a video.

        Args:
            level: an index into the manifest's levels; finer ones stand in where it does not hold the video.
            frames: source frames that are wanted: of a remote video only what they depend on is read. All, without it.

        Raises:
            DataError: the storage does not answer.
            VideoError: its shard is missing or damaged, or the source file that its packets are in is, or has changed.
        """
        return self._told(split, sample, level, self._reading(split, sample, level, frames))

    def videos(
        self, split: str, wanted: Sequence[tuple[int, int, Sequence[int]]]
    ) -> Iterator[StoredVideo | VideoError]:
        """Videos of (sample, level, frames), in order, or what is wrong with one; they are read while those before them are used.

        Raises:
            DataError: the storage does not answer.
        """
        ahead = _LOCAL_AHEAD if _folder(self.root).is_local else _READ_AHEAD
        assert self._index is not None, "read once, before many threads need it"
        upcoming = ((item, self._reading(split, *item)) for item in wanted)
        pending = deque(itertools.islice(upcoming, ahead))
        try:
            while pending:
                (sample, level, _), reading = pending[0]
                try:
                    video: StoredVideo | VideoError = self._told(split, sample, level, reading)
                except VideoError as error:
                    video = error
                pending.popleft()
                pending.extend(itertools.islice(upcoming, 1))
                yield video
        finally:
            for _, reading in pending:
                reading.cancel()

    def _reading(self, split: str, sample: int, level: int, frames: Sequence[int] | None) -> Reading[StoredVideo]:
        file, offset, head, length = self._place(split, sample, level)
        read = functools.partial(_read_video, self.root, file, offset, head, length, frames)
        return _readers().start(read, retry_errors=not _folder(self.root).retries_itself)

    def _place(self, split: str, sample: int, level: int) -> tuple[FileSum, int, int, int]:
        """Shard, offset, head and length of a video at the level, or at the next finer one that holds it."""
        row, index = self._row(split, sample), self._index
        while level and not index.length[level][row]:
            level -= 1
        file = self.manifest.levels[level].shards[index.shard[row]]
        offset, head, length = (int(column[level][row]) for column in (index.offset, index.head, index.length))
        return file, offset, head, length

    def _told(self, split: str, sample: int, level: int, reading: Reading[StoredVideo]) -> StoredVideo:
        """The video that was read, or what keeps it from being read in the user's words."""
        file = self._place(split, sample, level)[0]
        try:
            return reading.result()
        except FileNotFoundError:
            raise _as_video(_missing(self.root, file)) from None
        except OSError as error:
            # a bad block of a disk is this video's alone; a storage that does not answer has nothing to do with it
            problem = unreadable(self.root, OSError(f"{one_line(error)}, at {self.path(split, sample)}"))
            raise (_as_video(problem) if error.errno == errno.EIO else problem) from None
        except (pa.ArrowException, EOFError) as error:
            raise _as_video(_damaged(self.root, file, one_line(error))) from None

    @property
    def is_passthrough(self) -> bool:
        """Whether the packets are those of the source files, and in them."""
        return not self.manifest.levels[0].short_side

    def summary(self) -> dict[str, Any]:
        """What the dataset holds, in plain values: videos, frames, seconds, kinds of source files, and bytes of each level."""
        table = _index_table(self.root, self.manifest.index)

        def counts(name: str) -> dict[str, int]:
            rows = table[name].value_counts().to_pylist()
            return {str(row["values"]): row["counts"] for row in sorted(rows, key=lambda row: -row["counts"])}

        frames, fps = table["num_frames"].to_numpy(), table["fps"].to_numpy()
        return {
            "path": self.root,
            "version": self.manifest.version,
            "classes": len(self.classes),
            "multi_label": self.multi_label,
            "videos": dict(self.manifest.counts),
            "frames": int(frames.sum()),
            "seconds": round(float((frames / np.maximum(fps, 1e-9))[fps > 0].sum()), 1),
            "source_bytes": int(table["num_bytes"].to_numpy().sum()),
            "source_codecs": counts("codec"),
            "pixel_formats": counts("pixel_format"),
            "rotations": counts("rotation"),
            "levels": [
                {
                    "level": level.name,
                    "videos": int((table[f"length_{level.name}"].to_numpy() > 0).sum()),
                    "shards": len(level.shards),
                    "bytes": sum(shard.num_bytes for shard in level.shards),
                }
                for level in self.manifest.levels
            ],
            "codec": dict(self.manifest.codec),
            "broken": [dataclasses.asdict(item) for item in self.manifest.broken],
        }

    def digest(self) -> str:
        """SHA-256 of the content (classes, samples, labels, levels, codec), not of where it lies."""
        return self.manifest.content_digest

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            DataError: a file is missing or differs from what ingest wrote.
        """
        folder = Folder.of(self.root)
        files = [self.manifest.index, *(file for level in self.manifest.levels for file in level.shards)]
        for file in files:
            content = _content(folder, self.root, file)
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise _damaged(self.root, file, "its checksum differs")

    def _row(self, split: str, sample: int) -> int:
        if not 0 <= sample < self.num_samples(split):
            raise IndexError(f"{split} sample {sample} of {self.num_samples(split)}")
        return self._first[split] + sample

    @property
    def _index(self) -> _Index:
        return _read_index(self.root, self.manifest.index, tuple(level.name for level in self.manifest.levels))


def _manifest_text(folder: Folder, path: str) -> str:
    try:
        return str(folder.read(MANIFEST).to_pybytes().decode())
    except FileNotFoundError:
        problem, remedy = f"holds no {MANIFEST}", "make shards of your videos with mgray ingest"
    except UnicodeDecodeError as error:
        problem, remedy = f"its {MANIFEST} is no text ({error})", "ingest the videos again with this version of mgray"
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        if not folder.exists():
            problem, remedy = "is no folder", "check the path"
            bucket = folder.path.partition("/")[0]
            if not folder.is_local and not Folder(folder.fs, bucket).exists():
                problem = f"its bucket {bucket} does not exist"
    except OSError as error:
        raise unreadable(path, error) from None
    raise DataError("data.path", path, problem, remedy)


@functools.lru_cache(maxsize=16)
def _reopen(root: str, text_digest: str) -> ShardSet:
    """The dataset as another process opened it."""
    text = _manifest_text(Folder.of(root), root)
    if hashlib.sha256(text.encode()).hexdigest() != text_digest:
        raise DataError("data.path", root, "has changed since the run opened it", "start the run again")
    return ShardSet(root, text)


def _damaged(root: str, file: FileSum, problem: str) -> DataError:
    return DataError(
        "data.path", root, f"{file.name} is damaged ({problem})", "delete the folder and ingest the videos again"
    )


def _missing(root: str, file: FileSum) -> DataError:
    return DataError(
        "data.path", root, f"its file {file.name} is missing", "copy the whole folder, or ingest the videos again"
    )


def _check_size(root: str, file: FileSum, num_bytes: int | None) -> None:
    if num_bytes is None:
        raise _missing(root, file)
    if num_bytes != file.num_bytes:
        raise _damaged(root, file, f"it has {num_bytes} bytes instead of {file.num_bytes}")


def _content(folder: Folder, root: str, file: FileSum) -> pa.Buffer:
    """All of a file of the dataset."""
    try:
        content = folder.read(file.name)
    except FileNotFoundError:
        raise _missing(root, file) from None
    except OSError as error:
        raise unreadable(root, error) from None
    _check_size(root, file, len(content))
    return content


def _index_table(root: str, file: FileSum) -> pa.Table:
    try:
        return pa.ipc.open_file(_content(Folder.of(root), root, file)).read_all()
    except pa.ArrowException as error:
        raise _damaged(root, file, one_line(error)) from None


@functools.lru_cache(maxsize=4)
def _read_index(root: str, file: FileSum, levels: tuple[str, ...]) -> _Index:
    table = _index_table(root, file).combine_chunks()
    try:
        names = ("label", "num_frames", "width", "height", "fps", "shard")
        numbers: dict[str, Any] = {name: table[name].to_numpy() for name in names}
        places: dict[str, Any] = {
            field: tuple(table[f"{field}_{level}"].to_numpy() for level in levels)
            for field in ("offset", "head", "length")
        }
        actions = _actions_of(table) if "labels" in table.column_names else None
        return _Index(path=table["path"], group=table["group"], **numbers, **places, actions=actions)
    except KeyError as error:
        raise _damaged(root, file, str(error)) from None


def _actions_of(table: pa.Table) -> _Actions:
    label, start_s, end_s = (table[name].combine_chunks() for name, _, _ in _ACTION_COLUMNS)
    return _Actions(
        first=label.offsets.to_numpy(),
        label=label.values.to_numpy(),
        start_s=start_s.values.to_numpy(),
        end_s=end_s.values.to_numpy(),
    )


def _as_video(error: DataError) -> VideoError:
    return VideoError(error.field, error.value, error.problem, error.remedy)


def _read_video(
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
    video = _parsed(pa.py_buffer(content))
    if frames is not None and not whole and not video.file:
        needed = video.needed(frames)
        begins = head + video.offsets[needed]
        wanted = zip(begins.tolist(), (begins + video.sizes[needed]).tolist(), strict=True)
        shard.read_into(content, offset, wanted)
    return _from_source(video, frames) if video.file else video


@functools.lru_cache(maxsize=64)
def _folder(root: str) -> Folder:
    """The folder that clips are read from, looked up once."""
    return Folder.of(root, PATIENCE)


def _open_shard(root: str, file: FileSum) -> LocalFile | RemoteFile:
    return _local_shard(root, file) if _folder(root).is_local else _remote_shard(root, file)


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _local_shard(root: str, file: FileSum) -> LocalFile:
    shard = LocalFile(Folder.of(root).join(file.name))
    if len(shard) != file.num_bytes:
        raise EOFError(f"it has {len(shard)} bytes instead of {file.num_bytes}")
    return shard


@functools.lru_cache(maxsize=_REMOTE_SHARDS)
def _remote_shard(root: str, file: FileSum) -> RemoteFile:
    return RemoteFile(_folder(root), file.name, file.num_bytes)


def _parsed(content: pa.Buffer) -> StoredVideo:
    """The video of a serialised record batch.

    Raises:
        ArrowInvalid: the batch is damaged, or is no video's.
    """
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(content), _VIDEO_SCHEMA)
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
            "data.path", video.file, f"cannot be read any more ({error.strerror})", "put it back, or ingest again"
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


@functools.lru_cache(maxsize=1)
def _readers() -> Readers:
    return Readers(_READERS)
