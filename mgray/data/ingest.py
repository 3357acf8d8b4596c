"""Ingest: videos into shards, as a Ray Data job.

Each task encodes the videos of one shard and records what came of it, so a job that was cut off goes on where it stopped:

    .ingest/job.json      which list of videos and which settings the folder is for
    .ingest/00000.json    a finished shard: its checksum, index rows and broken videos

Both are written after what they describe, and go when the manifest is in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray.data

from mgray.data.annotations import Annotations, read_annotations
from mgray.data.decode import CODEC, transcode
from mgray.data.shard import (
    MANIFEST,
    SPLITS,
    VERSION,
    Broken,
    FileSum,
    Folder,
    IndexRow,
    Level,
    Manifest,
    ShardSet,
    StoredVideo,
    content_digest,
    shard_name,
    write_index,
    write_shard,
)  # fmt: skip
from mgray.errors import DataError, VideoError

_WORK = ".ingest"
_JOB = f"{_WORK}/job.json"
_MIN_SHARDS = 32
"""Small datasets are cut into about this many shards, so that all workers have some."""
_MIN_VIDEOS = 8
_REPORT_BYTES = 4 << 20
"""A task reports after each so many bytes of source files."""
_STALE = datetime.timedelta(hours=1)
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestProgress:
    """How far an ingest is, in videos; `done` includes those of earlier calls and broken ones."""

    done: int
    total: int
    broken: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _SourceVideo:
    location: str
    path: str
    label: int
    split: str
    group: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The videos of one shard."""

    index: int
    short_side: int
    videos: tuple[_SourceVideo, ...]

    @property
    def name(self) -> str:
        return f"{_WORK}/{self.index:05d}.json"

    def key(self) -> str:
        """Identifies the files and settings that the shard is made from."""
        files = [[v.path, v.num_bytes, v.label, v.split, v.group] for v in self.videos]
        return _sha256([VERSION, self.short_side, CODEC, files])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """What came of a part."""

    part: int
    key: str
    shard: FileSum
    rows: tuple[IndexRow, ...]
    broken: tuple[Broken, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> _Outcome:
        tree = json.loads(text)
        return cls(
            part=tree["part"],
            key=tree["key"],
            shard=FileSum(**tree["shard"]),
            rows=tuple(IndexRow(**row) for row in tree["rows"]),
            broken=tuple(Broken(**item) for item in tree["broken"]),
        )


@dataclass(frozen=True, slots=True)
class _Report:
    """Progress within a part, or its end."""

    part: int
    done: int
    outcome: str = ""
    error: str = ""


def ingest(
    source: str,
    out: str,
    *,
    short_side: int = 256,
    val_fraction: float = 0.2,
    videos_per_shard: int = 64,
    max_broken: float = 0.01,
    num_workers: int = 0,
    on_progress: Callable[[IngestProgress], None] | None = None,
) -> Manifest:
    """Turn a folder or list of videos into shards, on the Ray that the caller has started.

    Calling it again goes on where it was cut off; once done, it does nothing. Videos that do not decode are left out and
    listed in the manifest.

    Args:
        source: what `read_annotations` reads.
        out: folder of the shards, local or an address that pyarrow.fs knows; all nodes must see it and the videos.
        short_side: pixels that larger videos are reduced to.
        val_fraction: share of the videos held out where the source names no split.
        videos_per_shard: videos in a shard file; fewer in a small dataset.
        max_broken: share of broken videos above which there is an error.
        num_workers: tasks at once; 0 takes every CPU of the cluster.
        on_progress: called as shards come in.

    Raises:
        DataError: the source cannot be used, `out` holds something else, or too many videos are broken.
    """
    _check_settings(short_side, videos_per_shard, max_broken, num_workers)
    annotations = read_annotations(source, val_fraction=val_fraction)
    folder = Folder.of(out)
    _check_apart(source, out, folder)
    list_digest = _sha256([VERSION, short_side, videos_per_shard, CODEC, _listing(annotations)])
    parts = _parts(annotations, short_side, videos_per_shard)
    source_digest = _sha256([list_digest, [part.key() for part in parts]])
    if folder.exists(MANIFEST):
        manifest = ShardSet.open(out).manifest
        _check_same(out, manifest.source_digest == source_digest)
        return manifest
    _claim(folder, out, list_digest)
    total = len(annotations.samples)
    outcomes = _stored_outcomes(folder, parts)
    pending = [part for part in parts if part.index not in outcomes]
    done = {outcome.part: len(parts[outcome.part].videos) for outcome in outcomes.values()}

    def notify() -> None:
        broken = [item for outcome in outcomes.values() for item in outcome.broken]
        _check_broken(source, broken, total, max_broken)
        if on_progress is not None:
            on_progress(IngestProgress(done=sum(done.values()), total=total, broken=len(broken)))

    notify()
    with _quiet(), contextlib.closing(_run(folder, pending, num_workers)) as reports:
        for report in reports:
            if report.error:
                raise DataError(
                    "out", out, f"cannot be written ({report.error})", "free space or mend access, then go on"
                )
            done[report.part] = report.done
            if report.outcome:
                outcomes[report.part] = _Outcome.from_json(report.outcome)
            notify()
    manifest = _finish(
        folder, os.path.abspath(os.path.expanduser(source)), source_digest, annotations, short_side,
        [outcomes[part.index] for part in parts],
    )  # fmt: skip
    return manifest


def _check_settings(short_side: int, videos_per_shard: int, max_broken: float, num_workers: int) -> None:
    if short_side < 2:
        raise DataError("short_side", short_side, "must be at least 2", "give e.g. 256")
    if videos_per_shard < 1:
        raise DataError("videos_per_shard", videos_per_shard, "must be at least 1", "give e.g. 64")
    if not 0 <= max_broken <= 1:
        raise DataError("max_broken", max_broken, "is outside [0, 1]", "give a share, e.g. 0.01")
    if num_workers < 0:
        raise DataError("num_workers", num_workers, "must not be negative", "give 0 for all CPUs")


def _check_apart(source: str, out: str, folder: Folder) -> None:
    base = os.path.abspath(os.path.expanduser(source))
    if folder.is_local and os.path.isdir(base) and os.path.commonpath([base, folder.path]) == base:
        raise DataError("out", out, f"lies within the videos' folder {source}", "give a folder outside it")


def _check_same(out: str, same: bool) -> None:
    if not same:
        raise DataError(
            "out", out, "holds shards of other videos or settings", "give another folder, or delete this one first"
        )


def _check_broken(source: str, broken: Sequence[Broken], total: int, max_broken: float) -> None:
    if len(broken) <= max_broken * total:
        return
    first = ", ".join(f"{item.path} ({item.reason})" for item in broken[:_SHOWN])
    raise DataError(
        "data.path", source, f"{len(broken)} of {total} videos are broken, more than max_broken = {max_broken}: "
        f"{first}{', ...' if len(broken) > _SHOWN else ''}",
        "repair them or allow more, then go on; what is done is kept",
    )  # fmt: skip


def _claim(folder: Folder, out: str, list_digest: str) -> None:
    """Mark an empty folder as the one for this list, or check that it is."""
    job = json.dumps({"list_digest": list_digest}).encode()
    if folder.exists(_JOB):
        _check_same(out, folder.read(_JOB).to_pybytes() == job)
        return
    if set(folder.names()) - {_WORK}:
        raise DataError("out", out, "is not empty and holds no shards", "give a new folder")
    try:
        folder.write(_JOB, job)
    except OSError as error:
        raise DataError("out", out, f"cannot be written ({error})", "give a folder that you may write to") from None


def _listing(annotations: Annotations) -> list[list[str]]:
    return [[s.path, annotations.classes[s.label], s.split, s.group] for s in annotations.samples]


def _parts(annotations: Annotations, short_side: int, videos_per_shard: int) -> list[_Part]:
    root = os.path.abspath(annotations.root)
    videos = []
    for sample in annotations.samples:
        location = os.path.join(root, sample.path)
        videos.append(
            _SourceVideo(
                location=location, path=sample.path, label=sample.label, split=sample.split, group=sample.group,
                num_bytes=os.path.getsize(location),
            )
        )  # fmt: skip
    size = min(videos_per_shard, max(_MIN_VIDEOS, -(-len(videos) // _MIN_SHARDS)))
    return [
        _Part(index=index, short_side=short_side, videos=tuple(videos[start : start + size]))
        for index, start in enumerate(range(0, len(videos), size))
    ]


def _stored_outcomes(folder: Folder, parts: Sequence[_Part]) -> dict[int, _Outcome]:
    """The parts that an earlier call finished, and whose source files have not changed since."""
    stored = set(Folder(folder.fs, folder.join(_WORK)).names())
    outcomes = {}
    for part in parts:
        if os.path.basename(part.name) not in stored:
            continue
        try:
            outcome = _Outcome.from_json(folder.read(part.name).to_pybytes().decode())
        except (ValueError, KeyError, TypeError):  # half-written, or of another version
            continue
        shard = folder.fs.get_file_info(folder.join(outcome.shard.name))
        if outcome.key == part.key() and shard.type == pafs.FileType.File and shard.size == outcome.shard.num_bytes:
            outcomes[part.index] = outcome
    return outcomes


def _run(folder: Folder, parts: Sequence[_Part], num_workers: int) -> Generator[_Report, None, None]:
    """Encode the parts on the cluster; their reports as they come."""
    if not parts:
        return
    items = [{"part": pickle.dumps(part)} for part in parts]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.target_max_block_size = context.target_min_block_size = 1  # each report leaves its task at once

    def encode(batch: dict[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, list[Any]]]:
        for item in batch["part"]:
            for report in _encode_part(folder, pickle.loads(item)):
                yield {name: [value] for name, value in dataclasses.asdict(report).items()}

    reports = dataset.map_batches(
        encode, batch_size=None, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=num_workers or None)
    )
    for table in reports.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(table, pa.Table)
        yield from (_Report(**row) for row in table.to_pylist())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's messages out of the terminal; its log files have them."""
    consoles = [
        (handler, handler.level)
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    for handler, _ in consoles:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in consoles:
            handler.setLevel(level)


def _encode_part(folder: Folder, part: _Part) -> Iterator[_Report]:
    """Write a part's shard and record; reports come at the same places whenever a task is repeated."""
    videos: list[StoredVideo] = []
    kept: list[_SourceVideo] = []
    broken = []
    unreported = 0
    for done, video in enumerate(part.videos):
        if unreported >= _REPORT_BYTES:
            yield _Report(part.index, done)
            unreported = 0
        unreported += video.num_bytes
        try:
            videos.append(transcode(video.location, part.short_side))
            kept.append(video)
        except VideoError as error:
            broken.append(Broken(path=video.path, reason=error.problem))
    try:
        shard, extents = write_shard(folder, shard_name(part.short_side, part.index), videos)
        rows = tuple(
            IndexRow(
                split=video.split, path=video.path, label=video.label, group=video.group,
                num_frames=stored.source.num_frames, width=stored.source.width, height=stored.source.height,
                fps=stored.source.fps, shard=part.index, offset=extent.offset, length=extent.length,
            )
            for video, stored, extent in zip(kept, videos, extents, strict=True)
        )  # fmt: skip
        outcome = _Outcome(part=part.index, key=part.key(), shard=shard, rows=rows, broken=tuple(broken)).to_json()
        folder.write(part.name, outcome.encode())
    except OSError as error:
        yield _Report(part.index, 0, error=str(error))
        return
    yield _Report(part.index, len(part.videos), outcome=outcome)


def _finish(
    folder: Folder,
    source: str,
    source_digest: str,
    annotations: Annotations,
    short_side: int,
    outcomes: Sequence[_Outcome],
) -> Manifest:
    """Write index and manifest, and remove what only an unfinished job needs."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    counts = {split: sum(row.split == split for row in rows) for split in SPLITS}
    for split, count in counts.items():
        if not count:
            raise DataError("data.path", source, f"has no {split} video that decodes", "add or repair videos")
    manifest = Manifest(
        version=VERSION,
        source=source,
        source_digest=source_digest,
        classes=annotations.classes,
        counts=counts,
        levels=(Level(short_side=short_side, shards=tuple(outcome.shard for outcome in outcomes)),),
        codec=CODEC,
        index=write_index(folder, rows, short_side),
        content_digest=content_digest(annotations.classes, rows, [short_side], CODEC),
        broken=tuple(item for outcome in outcomes for item in outcome.broken),
    )
    folder.write(MANIFEST, manifest.to_json().encode())
    with contextlib.suppress(FileNotFoundError):  # another call may finish the same job at the same time
        folder.delete(_WORK)
    _delete_stale(folder, short_side)
    return manifest


def _delete_stale(folder: Folder, short_side: int) -> None:
    """Remove half-written shards of tasks that were killed."""
    now = datetime.datetime.now(datetime.UTC)
    for info in folder.fs.get_file_info(pafs.FileSelector(folder.join(str(short_side)), allow_not_found=True)):
        if info.base_name.endswith(".tmp") and info.mtime is not None and now - info.mtime > _STALE:
            folder.fs.delete_file(info.path)


def _sha256(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
