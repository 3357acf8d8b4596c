"""One part of an ingest: the videos of one shard, read, encoded and written by one task, and the record of what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mgray.data.annotations import Action
from mgray.data.decode.encode import CODEC
from mgray.data.decode.ingest_video import ingest_video
from mgray.data.decode.transcode import Ingested
from mgray.data.shards.index import Extent, IndexRow, SourceProbe
from mgray.data.shards.manifest import VERSION, Broken, level_name
from mgray.data.shards.writer import shard_name, write_shard
from mgray.data.storage import FileSum, Folder, one_line
from mgray.data.watch import CRASHES, Watch
from mgray.errors import SlowVideoError, UnreadVideoError, VideoError

WORK = ".ingest"
"""The folder of what only an unfinished ingest needs."""
_REPORT_BYTES = 4 << 20
"""A task reports after each so many bytes of source files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceVideo:
    """A video that is to be stored: where it lies, and what its row of the index says."""

    location: str
    path: str
    label: int
    split: str
    group: str
    num_bytes: int
    actions: tuple[Action, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The videos of one shard."""

    index: int
    levels: tuple[int, ...]
    limit_s: float
    source: str
    """Where the videos were found."""
    videos: tuple[SourceVideo, ...]

    @property
    def name(self) -> str:
        """The path of the part's record below the dataset's folder."""
        return f"{WORK}/{self.index:05d}.json"

    @property
    def watch_name(self) -> str:
        """The path of what its attempts leave for each other."""
        return f"{WORK}/{self.index:05d}.watch"

    def key(self) -> str:
        """Identifies the files and settings that the shard is made from."""
        files = [[v.path, v.num_bytes, v.label, v.split, v.group, *plain_actions(v.actions)] for v in self.videos]
        return json_digest([VERSION, self.levels, CODEC, files])

    def read(self, video: SourceVideo) -> Ingested:
        """A video at the part's levels; raises as `ingest_video`."""
        return ingest_video(self.source, video.location, self.levels, limit_s=self.limit_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a part."""

    part: int
    key: str
    shards: tuple[FileSum, ...]
    """One for each level."""
    rows: tuple[IndexRow, ...]
    broken: tuple[Broken, ...]
    retry_above_s: float | None
    """The limit of time above which another ingest may find a broken video whole; None where none may be."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        tree = json.loads(text)
        return cls(
            part=tree["part"],
            key=tree["key"],
            shards=tuple(FileSum(**shard) for shard in tree["shards"]),
            rows=tuple(_row(row) for row in tree["rows"]),
            broken=tuple(Broken(**item) for item in tree["broken"]),
            retry_above_s=tree["retry_above_s"],
        )


def _row(tree: dict[str, Any]) -> IndexRow:
    extents, probe = (Extent(**extent) for extent in tree.pop("extents")), SourceProbe(**tree.pop("probe"))
    actions = tuple(Action(**action) for action in tree.pop("actions"))
    return IndexRow(**tree, extents=tuple(extents), probe=probe, actions=actions)


@dataclass(frozen=True, slots=True)
class Report:
    """Progress within a part, or its end."""

    part: int
    done: int
    outcome: str = ""
    unread: str = ""
    """Why a video cannot be fetched."""
    error: str = ""
    """Why the shard cannot be written."""


def encode_part(folder: Folder, part: Part, call: str = "") -> Iterator[Report]:
    """Write a part's shard and record; reports come at the same places whenever a task is repeated.

    Args:
        call: the ingest that it is done for, whose attempts know of each other.
    """
    try:
        yield from _encode(folder, part, Watch(folder, part.watch_name, call))
    except OSError as error:
        yield Report(part.index, 0, error=one_line(error))


def _encode(folder: Folder, part: Part, watch: Watch) -> Iterator[Report]:
    """Raises OSError where the folder cannot be read or written."""
    videos: list[Ingested] = []
    kept: list[SourceVideo] = []
    broken, retry_above_s = [], []
    unreported = 0
    for done, video in enumerate(part.videos):
        if unreported >= _REPORT_BYTES:
            yield Report(part.index, done)
            unreported = 0
        unreported += video.num_bytes
        if watch.refuses(video.path):
            broken.append(Broken(path=video.path, reason=CRASHES))
            retry_above_s.append(0.0)
            continue
        watch.begin(video.path)
        try:
            videos.append(part.read(video))
            kept.append(video)
        except VideoError as error:
            broken.append(Broken(path=video.path, reason=error.problem))
            if isinstance(error, SlowVideoError):
                retry_above_s.append(part.limit_s)
            elif isinstance(error, UnreadVideoError):
                retry_above_s.append(0.0)
        except OSError as error:
            yield Report(part.index, done, unread=one_line(error))
            return
    watch.begin("")
    shards, extents = [], []
    for number, level in enumerate(part.levels):
        name = shard_name(level_name(level), part.index)
        shard, places = write_shard(folder, name, [video.levels[number] for video in videos])
        shards.append(shard)
        extents.append(places)
    rows = []
    for video, ingested, places in zip(kept, videos, zip(*extents, strict=True), strict=True):
        stored = ingested.levels[0]
        assert stored is not None, "every video is at the finest level"
        rows.append(
            IndexRow(
                split=video.split, path=video.path, label=video.label, group=video.group,
                num_frames=stored.source.num_frames, width=stored.source.width, height=stored.source.height,
                fps=stored.source.fps, probe=ingested.probe, shard=part.index, extents=places,
                actions=video.actions,
            )
        )  # fmt: skip
    outcome = Outcome(
        part=part.index, key=part.key(), shards=tuple(shards), rows=tuple(rows), broken=tuple(broken),
        retry_above_s=min(retry_above_s, default=None),
    ).to_json()  # fmt: skip
    folder.write(part.name, outcome.encode())
    watch.end()
    yield Report(part.index, len(part.videos), outcome=outcome)


def plain_actions(actions: Sequence[Action]) -> list[list[float]]:
    """Actions as a digest takes them: label, start and end in seconds."""
    return [[action.label, action.start_s, action.end_s] for action in actions]


def json_digest(tree: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
