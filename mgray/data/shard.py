"""Shards: an ingested dataset on disk, and random access to any video in it.

A dataset is a folder, local or any address that pyarrow.fs knows:

    manifest.json       version, levels, codec, classes, counts, checksums, what was left out
    index.arrow         one row per video: where it lies, label, size, rate; train before val
    256/00000.arrow     shards of the level whose short side is 256: one record batch per video

Shards are Arrow IPC files, so any Arrow tool reads them. The index holds the place of each record batch in its file, so
that one video costs one slice of a memory-mapped local file (nothing is copied), or one range request of a remote one,
and no footer is read. Parquet was the alternative: its smallest unit, the page of a row group, is decompressed and
copied, and its footer must be read first. A further level is a further folder and two further columns in the index.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs

from mgray.data.clip import VideoInfo
from mgray.errors import DataError

FORMAT = "mgray-shards"
VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.arrow"
SPLITS = ("train", "val")
_OPEN_SHARDS = 256

_VIDEO_SCHEMA = pa.schema(
    [
        ("source_frames", pa.int32()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("extradata", pa.binary()),
        ("pts", pa.list_(pa.int32())),
        ("key", pa.list_(pa.uint8())),
        ("reference", pa.list_(pa.uint8())),
        ("offsets", pa.list_(pa.int64())),
        ("data", pa.large_binary()),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class StoredVideo:
    """One video at one level: H.264 packets in decoding order, without a container.

    Packet i is `data[offsets[i]:offsets[i + 1]]`; it shows source frame `pts[i]` (display order, from 0, no gaps). A GOP
    begins at each `key` packet and is closed; packets that are no `reference` may be left out.
    """

    source: VideoInfo
    width: int
    height: int
    extradata: bytes
    pts: npt.NDArray[np.int32]
    key: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    data: memoryview

    def packet(self, index: int) -> memoryview:
        """The bytes of a packet."""
        return self.data[self.offsets[index] : self.offsets[index + 1]]

    def to_batch(self) -> pa.RecordBatch:
        """One row of the shard schema."""
        row: list[Any] = [
            self.source.num_frames, self.source.width, self.source.height, self.source.fps,
            self.width, self.height, self.extradata,
            self.pts, self.key.astype(np.uint8), self.reference.astype(np.uint8), self.offsets, self.data,
        ]  # fmt: skip
        return pa.record_batch([pa.array([v], f.type) for v, f in zip(row, _VIDEO_SCHEMA, strict=True)], _VIDEO_SCHEMA)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> StoredVideo:
        """The video of a row that `to_batch` made; the packets stay in the batch's memory."""

        def scalar(name: str) -> Any:
            return batch.column(name)[0].as_py()

        def array(name: str) -> npt.NDArray[Any]:
            return np.asarray(batch.column(name).values.to_numpy(zero_copy_only=True))

        return cls(
            source=VideoInfo(scalar("source_frames"), scalar("source_width"), scalar("source_height"), scalar("fps")),
            width=scalar("width"),
            height=scalar("height"),
            extradata=scalar("extradata"),
            pts=array("pts"),
            key=array("key").view(np.bool_),
            reference=array("reference").view(np.bool_),
            offsets=array("offsets"),
            data=memoryview(batch.column("data")[0].as_buffer()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSum:
    """A file of a dataset, by its path within the folder."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One stored resolution: the short side in pixels of videos that are at least as large, and its shards in order."""

    short_side: int
    shards: tuple[FileSum, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """A video that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an ingested dataset holds; `source_digest` identifies the list of videos and the settings it was made from."""

    version: int
    source: str
    source_digest: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    """Videos per split."""
    levels: tuple[Level, ...]
    codec: Mapping[str, str]
    index: FileSum
    content_digest: str
    """SHA-256 of classes, samples, labels, levels and codec: equal for equal training data."""
    broken: tuple[Broken, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, path: str) -> Manifest:
        """The manifest that `to_json` wrote; `path` is for messages.

        Raises:
            DataError: it is no manifest, or of a version that this code does not know.
        """
        remedy = "ingest the videos again with this version of mgray"
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise DataError("data.path", path, f"its {MANIFEST} is no JSON ({error})", remedy) from None
        if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
            raise DataError("data.path", path, f"its {MANIFEST} does not describe mgray shards", remedy)
        if tree.get("version") != VERSION:
            raise DataError(
                "data.path", path, f"its shards have version {tree.get('version')!r}, this code reads {VERSION}", remedy
            )
        try:
            levels = [
                Level(short_side=level["short_side"], shards=tuple(FileSum(**shard) for shard in level["shards"]))
                for level in tree.pop("levels")
            ]
            return cls(
                classes=tuple(tree.pop("classes")),
                levels=tuple(levels),
                index=FileSum(**tree.pop("index")),
                broken=tuple(Broken(**item) for item in tree.pop("broken")),
                **tree,
            )
        except (KeyError, TypeError) as error:
            raise DataError("data.path", path, f"its {MANIFEST} lacks or misnames a field ({error})", remedy) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """A video's row of the index; `offset` and `length` are the place of its record batch in its shard."""

    split: str
    path: str
    label: int
    group: str
    num_frames: int
    width: int
    height: int
    fps: float
    shard: int
    offset: int
    length: int


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
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a file system that pyarrow knows; local paths are made absolute."""

    fs: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, path: str) -> Folder:
        """The folder at a local path or an address such as s3://bucket/data.

        Raises:
            DataError: no file system serves the address.
        """
        if "://" not in path:
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path)))
        try:
            fs, inner = pafs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError("data.path", path, f"cannot be reached ({error})", "check the address") from None
        return cls(fs, inner)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def join(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str = "") -> bool:
        info = self.fs.get_file_info(self.join(name) if name else self.path)
        return bool(info.type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none where it does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read(self, name: str) -> pa.Buffer:
        """All of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.fs.open_input_file(self.join(name)) as file:
            return file.read_buffer()

    def write(self, name: str, content: pa.Buffer | bytes) -> FileSum:
        """Write a file under another name, then rename it: it is never seen half-written."""
        target = self.join(name)
        self.fs.create_dir(target.rpartition("/")[0], recursive=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        with self.fs.open_output_stream(temporary) as file:
            file.write(content)
        self.fs.move(temporary, target)
        return FileSum(name=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def delete(self, name: str) -> None:
        """Remove a folder and all that it holds."""
        self.fs.delete_dir(self.join(name))


def shard_name(short_side: int, shard: int) -> str:
    return f"{short_side}/{shard:05d}.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """The place of a record batch in a shard file (bytes)."""

    offset: int
    length: int


def write_shard(folder: Folder, name: str, videos: Sequence[StoredVideo]) -> tuple[FileSum, tuple[Extent, ...]]:
    """Write videos as one shard file, and tell where each lies in it."""
    sink = pa.BufferOutputStream()
    extents = []
    with pa.ipc.new_file(sink, _VIDEO_SCHEMA) as writer:
        for video in videos:
            batch = video.to_batch()
            writer.write_batch(batch)
            length = pa.ipc.get_record_batch_size(batch)
            extents.append(Extent(offset=sink.tell() - length, length=length))
    return folder.write(name, sink.getvalue()), tuple(extents)


def write_index(folder: Folder, rows: Sequence[IndexRow], short_side: int) -> FileSum:
    """Write the index of `rows`, whose training videos come before the validation videos."""

    def column(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([getattr(row, name) for row in rows], kind)

    table = pa.table(
        {
            "split": column("split", pa.string()),
            "path": column("path", pa.string()),
            "group": column("group", pa.string()),
            "label": column("label", pa.int32()),
            "num_frames": column("num_frames", pa.int32()),
            "width": column("width", pa.int32()),
            "height": column("height", pa.int32()),
            "fps": column("fps", pa.float64()),
            "shard": column("shard", pa.int32()),
            f"offset_{short_side}": column("offset", pa.int64()),
            f"length_{short_side}": column("length", pa.int64()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return folder.write(INDEX, sink.getvalue())


def content_digest(
    classes: Sequence[str], rows: Sequence[IndexRow], short_sides: Sequence[int], codec: Mapping[str, str]
) -> str:
    """SHA-256 of what is trained on, whatever the number of shards and wherever they lie."""
    digest = hashlib.sha256(json.dumps([list(classes), list(short_sides), dict(sorted(codec.items()))]).encode())
    for row in rows:
        sample = [row.split, row.path, row.label, row.num_frames, row.width, row.height, row.fps]
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
            DataError: no such folder, no manifest in it, one of an unknown version, or a shard is missing or cut off.
        """
        folder = Folder.of(path)
        shards = cls(path, _manifest_text(folder, path))
        for level in shards.manifest.levels:
            for file in level.shards:
                _check_size(folder, path, file)
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

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """The classes of all videos of a split, int32 [num_samples]."""
        return self._index.label[self._first[split] : self._first[split] + self.num_samples(split)]

    def path(self, split: str, sample: int) -> str:
        """The source's path as its list or folder names it, for messages."""
        return str(self._index.path[self._row(split, sample)].as_py())

    def group(self, split: str, sample: int) -> str:
        """The group that is never on both sides of a split, such as a speaker."""
        return str(self._index.group[self._row(split, sample)].as_py())

    def video(self, split: str, sample: int) -> StoredVideo:
        """The packets of a video.

        Raises:
            DataError: its shard is missing or damaged.
        """
        row, index = self._row(split, sample), self._index
        file = self.manifest.levels[0].shards[index.shard[row]]
        shard = _open_shard(self.root, file)
        try:
            content = shard.read(int(index.offset[row]), int(index.length[row]))
            return StoredVideo.from_batch(pa.ipc.read_record_batch(pa.ipc.read_message(content), _VIDEO_SCHEMA))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise _damaged(self.root, file, str(error)) from None

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
            _check_size(folder, self.root, file)
            if hashlib.sha256(folder.read(file.name)).hexdigest() != file.sha256:
                raise _damaged(self.root, file, "its checksum differs")

    def _row(self, split: str, sample: int) -> int:
        if not 0 <= sample < self.num_samples(split):
            raise IndexError(f"{split} sample {sample} of {self.num_samples(split)}")
        return self._first[split] + sample

    @property
    def _index(self) -> _Index:
        return _read_index(self.root, self.manifest.index, self.manifest.levels[0].short_side)


def _manifest_text(folder: Folder, path: str) -> str:
    try:
        return str(folder.read(MANIFEST).to_pybytes().decode())
    except FileNotFoundError:
        if not folder.exists():
            raise DataError("data.path", path, "is no folder", "check the path") from None
        raise DataError(
            "data.path", path, f"holds no {MANIFEST}", "make shards of your videos with mgray ingest"
        ) from None


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


def _check_size(folder: Folder, root: str, file: FileSum) -> None:
    info = folder.fs.get_file_info(folder.join(file.name))
    if info.type == pafs.FileType.NotFound:
        raise DataError(
            "data.path", root, f"its file {file.name} is missing", "copy the whole folder, or ingest the videos again"
        )
    if info.size != file.num_bytes:
        raise _damaged(root, file, f"it has {info.size} bytes instead of {file.num_bytes}")


@functools.lru_cache(maxsize=4)
def _read_index(root: str, file: FileSum, short_side: int) -> _Index:
    folder = Folder.of(root)
    _check_size(folder, root, file)
    try:
        table = pa.ipc.open_file(folder.read(file.name)).read_all().combine_chunks()
        numbers = {
            name: table[column].to_numpy()
            for name, column in {
                "label": "label", "num_frames": "num_frames", "width": "width", "height": "height", "fps": "fps",
                "shard": "shard", "offset": f"offset_{short_side}", "length": f"length_{short_side}",
            }.items()
        }  # fmt: skip
        return _Index(path=table["path"], group=table["group"], **numbers)
    except (pa.ArrowException, KeyError) as error:
        raise _damaged(root, file, str(error)) from None


class _MappedShard:
    """A shard in a local file, mapped into memory."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def read(self, offset: int, length: int) -> pa.Buffer:
        return pa.py_buffer(self._view[offset : offset + length])


class _RemoteShard:
    """A shard behind a file system of pyarrow; one range request a video."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file

    def read(self, offset: int, length: int) -> pa.Buffer:
        return pa.py_buffer(self._file.read_at(length, offset))


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(root: str, file: FileSum) -> _MappedShard | _RemoteShard:
    folder = Folder.of(root)
    _check_size(folder, root, file)
    path = folder.join(file.name)
    return _MappedShard(path) if folder.is_local else _RemoteShard(folder.fs.open_input_file(path))
