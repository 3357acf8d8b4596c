"""The set of shards of a dataset: what it holds, and random access to any video in it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mgray.data.clip import VideoInfo
from mgray.data.shards.index import Index, index_table, read_index
from mgray.data.shards.integrity import check_size, damaged, missing, whole_file
from mgray.data.shards.manifest import Manifest, read_manifest_text
from mgray.data.shards.packets import StoredVideo
from mgray.data.shards.reader import folder_of, read_video, sizes_or_none, source_files
from mgray.data.storage import FileSum, Folder, Readers, Reading, answered, one_line, unreadable
from mgray.errors import DataError, VideoError

_READERS = 16
"""Remote videos that a process reads at once: they wait for the network, not for a CPU."""
_READ_AHEAD = 2 * _READERS
"""Remote videos of a block that are read, or being read, before they are decoded."""
_LOCAL_AHEAD = 2


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
        shards = cls(path, read_manifest_text(folder, path))
        for level in shards.manifest.levels:
            try:
                sizes = folder.sizes(level.name)
            except OSError as error:
                raise unreadable(path, error) from None
            for file in level.shards:
                check_size(path, file, sizes.get(file.name))
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
        ahead = _LOCAL_AHEAD if folder_of(self.root).is_local else _READ_AHEAD
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
        read = functools.partial(read_video, self.root, file, offset, head, length, frames)
        return _readers().start(read, retry_errors=not folder_of(self.root).retries_itself)

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
            raise _as_video(missing(self.root, file)) from None
        except OSError as error:
            # a bad block of a disk is this video's alone; a storage that does not answer has nothing to do with it
            problem = unreadable(self.root, OSError(f"{one_line(error)}, at {self.path(split, sample)}"))
            raise (_as_video(problem) if error.errno == errno.EIO else problem) from None
        except (pa.ArrowException, EOFError) as error:
            raise _as_video(damaged(self.root, file, one_line(error))) from None

    @property
    def is_passthrough(self) -> bool:
        """Whether the packets are those of the source files, and in them."""
        return not self.manifest.levels[0].short_side

    def summary(self) -> dict[str, Any]:
        """What the dataset holds, in plain values: videos, frames, seconds, kinds of source files, and bytes of each level."""
        table = index_table(self.root, self.manifest.index)

        def counts(name: str) -> dict[str, int]:
            rows = table[name].value_counts().to_pylist()
            return {str(row["values"]): row["counts"] for row in sorted(rows, key=lambda row: -row["counts"])}

        frames, fps = table["num_frames"].to_numpy(), table["fps"].to_numpy()
        seconds = (frames / np.maximum(fps, 1e-9))[fps > 0]
        # a passed-through video has no packets behind its table
        anew = table["length_source"].to_numpy() > table["head_source"].to_numpy() if self.is_passthrough else None
        return {
            "path": self.root,
            "version": self.manifest.version,
            "classes": len(self.classes),
            "multi_label": self.multi_label,
            "videos": dict(self.manifest.counts),
            "frames": int(frames.sum()),
            "seconds": round(float(seconds.sum()), 1),
            "shortest_s": round(float(seconds.min(initial=np.inf)), 2) if seconds.size else 0.0,
            "longest_s": round(float(seconds.max(initial=0.0)), 2),
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
            "encoded_anew": None if anew is None else int(anew.sum()),
            "codec": dict(self.manifest.codec),
            "broken": [dataclasses.asdict(item) for item in self.manifest.broken],
        }

    def digest(self) -> str:
        """SHA-256 of the content (classes, samples, labels, levels, codec), not of where it lies."""
        return self.manifest.content_digest

    def verify(self) -> None:
        """Read every file and compare its checksum; of sources that are passed through, look whether they are there and as long as they were.

        Raises:
            DataError: a file is missing or differs from what ingest wrote, or a source from what it was.
        """
        folder = Folder.of(self.root)
        files = [self.manifest.index, *(file for level in self.manifest.levels for file in level.shards)]
        for file in files:
            content = whole_file(folder, self.root, file)
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise damaged(self.root, file, "its checksum differs")
            if self.is_passthrough and file != self.manifest.index:
                self._check_sources(content)

    def _check_sources(self, shard: pa.Buffer) -> None:
        sources = source_files(shard)
        try:
            sizes = answered(functools.partial(sizes_or_none, [path for path, _ in sources]))
        except OSError as error:
            raise unreadable(self.root, error) from None
        for (path, num_bytes), size in zip(sources, sizes, strict=True):
            if size != num_bytes:
                problem = "is not there any more" if size is None else f"has {size} bytes instead of {num_bytes}"
                raise DataError(
                    "data.path", self.root, f"the video {path}, which was passed through, {problem}",
                    "put it back, or delete the shards and ingest again",
                )  # fmt: skip

    def _row(self, split: str, sample: int) -> int:
        if not 0 <= sample < self.num_samples(split):
            raise IndexError(f"{split} sample {sample} of {self.num_samples(split)}")
        return self._first[split] + sample

    @property
    def _index(self) -> Index:
        return read_index(self.root, self.manifest.index, tuple(level.name for level in self.manifest.levels))


@functools.lru_cache(maxsize=16)
def _reopen(root: str, text_digest: str) -> ShardSet:
    """The dataset as another process opened it."""
    text = read_manifest_text(Folder.of(root), root)
    if hashlib.sha256(text.encode()).hexdigest() != text_digest:
        raise DataError("data.path", root, "has changed since the run opened it", "start the run again")
    return ShardSet(root, text)


def _as_video(error: DataError) -> VideoError:
    return VideoError(error.field, error.value, error.problem, error.remedy)


@functools.lru_cache(maxsize=1)
def _readers() -> Readers:
    return Readers(_READERS)
