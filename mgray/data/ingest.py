"""Ingest: videos into shards, as a Ray Data job: at several levels, or as tables of their own packets (passthrough).

Each task encodes the videos of one shard and records what came of it, so a job that was cut off goes on where it stopped:

    .ingest/job.json      which list of videos and which settings the folder is for
    .ingest/00000.json    a finished shard: its checksum, index rows and broken videos
    .ingest/00000.watch   an unfinished one: which videos its attempts died of

The first two are written after what they describe, and go when the manifest is in place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import logging
import os
import pickle
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray.data
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

from mgray.data.annotations import Annotations, read_annotations
from mgray.data.decode.encode import CODEC
from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.feed import own_error
from mgray.data.files import sizes_of
from mgray.data.ingest_part import WORK, Outcome, Part, Report, SourceVideo, encode_part, json_digest, plain_actions
from mgray.data.ingest_settings import VIDEOS_PER_SHARD, check_settings
from mgray.data.shards.index import SPLITS, content_digest, write_index
from mgray.data.shards.manifest import MANIFEST, MULTI_LABEL_VERSION, SOURCE, VERSION, Broken, Level, Manifest
from mgray.data.shards.shard_set import ShardSet
from mgray.data.storage import Folder, answered, bare, one_line, unreadable
from mgray.data.watch import TASK_RETRIES
from mgray.errors import DataError, VideoError

_JOB = f"{WORK}/job.json"
_MIN_SHARDS = 32
"""Small datasets are cut into about this many shards, so that all workers have some."""
_MIN_VIDEOS = 8
LEVELS = (256, 226, 160)
"""Short sides that cover the Kinetics schedule's crops of 224, 158 and 112 pixels where these are cut from the same part of a picture."""
_STALE = datetime.timedelta(hours=1)
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestProgress:
    """How far an ingest is, in videos; `done` includes those of earlier calls and broken ones."""

    done: int
    total: int
    broken: int


def ingest(
    source: str,
    out: str,
    *,
    levels: Sequence[int] = LEVELS,
    val_fraction: float = 0.2,
    videos: str = "",
    videos_per_shard: int = VIDEOS_PER_SHARD,
    max_broken: float = 0.01,
    limit_s: float = DECODE_LIMIT_S,
    num_workers: int = 0,
    on_progress: Callable[[IngestProgress], None] | None = None,
) -> Manifest:
    """Turn a folder or list of videos into shards, on the Ray that the caller has started.

    Calling it again goes on where it was cut off; once done, it does nothing. Videos that do not decode are left out and
    listed in the manifest.

    Args:
        source: what `read_annotations` reads; videos in an object store are fetched one at a time, and cannot be passed through.
        out: folder of the shards, local or an address that pyarrow.fs knows; all nodes must see it and the videos.
        levels: short sides in pixels that larger videos are reduced to, from the finest to the coarsest; `SOURCE` leaves the videos
            where they are and stores tables of their packets.
        val_fraction: share of the videos held out where the source names no split.
        videos: the folder that the videos of a list lie in, where it is not the list's.
        videos_per_shard: videos in a shard file; fewer in a small dataset.
        max_broken: share of broken videos above which there is an error.
        limit_s: seconds of CPU time of decoding after which a video counts as broken.
        num_workers: tasks at once; 0 takes every CPU of the cluster.
        on_progress: called as shards come in.

    Raises:
        DataError: the source cannot be used, `out` holds something else, or too many videos are broken.
    """
    levels = tuple(levels)
    check_settings(
        levels, val_fraction=val_fraction, max_broken=max_broken, limit_s=limit_s, videos_per_shard=videos_per_shard,
        num_workers=num_workers,
    )  # fmt: skip
    if levels == SOURCE and "://" in (videos or source):
        raise DataError(
            "data.path",
            videos or source,
            "cannot be passed through",
            "store levels of it, or copy it to a local folder",
        )
    annotations = read_annotations(source, val_fraction=val_fraction, videos=videos)
    folder = Folder.of(out)
    _check_apart(source, out, folder)
    if videos:
        _check_apart(videos, out, folder)
    list_digest = json_digest([VERSION, levels, videos_per_shard, CODEC, _listing(annotations)])
    place = [os.path.abspath(annotations.root)] if levels == SOURCE else []
    parts = _parts(videos or source, annotations, levels, limit_s, videos_per_shard)
    source_digest = json_digest([list_digest, [part.key() for part in parts]])
    try:
        if folder.exists(MANIFEST):
            stored = ShardSet.open(out)
            _check_same(out, stored.manifest.source_digest == source_digest)
            _check_in_place(out, stored)
            return stored.manifest
        _claim(folder, out, json_digest([list_digest, *place]) if place else list_digest)
        outcomes = _stored_outcomes(folder, parts)
    except OSError as error:
        raise _unwritable(out, error) from None
    total = len(annotations.samples)
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
            if report.unread:
                raise unreadable(videos or source, OSError(report.unread))
            if report.error:
                raise DataError(
                    "out", out, f"cannot be written ({report.error})", "free space or mend access, then go on"
                )
            done[report.part] = report.done
            if report.outcome:
                outcomes[report.part] = Outcome.from_json(report.outcome)
            notify()
    try:
        return _finish(
            folder, bare(source), source_digest, annotations, levels,
            [outcomes[part.index] for part in parts],
        )  # fmt: skip
    except OSError as error:
        raise _unwritable(out, error) from None


def _check_apart(source: str, out: str, folder: Folder) -> None:
    base, inside = bare(source), bare(out)
    is_folder = answered(lambda: os.path.isdir(base)) if folder.is_local else "://" in source
    if is_folder and f"{inside}/".startswith(f"{base}/"):
        raise DataError("out", out, f"lies within the videos' folder {source}", "give a folder outside it")


def _check_same(out: str, same: bool) -> None:
    if not same:
        raise DataError(
            "out", out, "holds shards of other videos or settings", "give another folder, or delete this one first"
        )


def _check_in_place(out: str, stored: ShardSet) -> None:
    """Refuse to leave a set as it is whose passed-through videos are not where they were."""
    for split in SPLITS if stored.is_passthrough else ():
        try:
            stored.video(split, 0, frames=[0])
        except VideoError as error:
            raise DataError(
                "out", out, f"its packet tables are of videos that were elsewhere ({error.value!r} {error.problem})",
                "delete this folder first, or give another",
            ) from None  # fmt: skip


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
    """Mark an empty folder as the one for this list, or check that it is.

    Raises:
        DataError: it is not, or holds something else.
        OSError: it cannot be read or written.
    """
    job = json.dumps({"list_digest": list_digest}).encode()
    if folder.exists(_JOB):
        _check_same(out, folder.read(_JOB).to_pybytes() == job)
        return
    if set(folder.names()) - {WORK}:
        raise DataError("out", out, "is not empty and holds no shards", "give a new folder")
    folder.write(_JOB, job)


def _unwritable(out: str, error: OSError) -> DataError:
    return DataError("out", out, f"cannot be written ({one_line(error)})", "give a folder that you may write to")


def _listing(annotations: Annotations) -> list[list[Any]]:
    if annotations.multi_label:
        samples: list[list[Any]] = [[s.path, plain_actions(s.actions), s.split, s.group] for s in annotations.samples]
        return [list(annotations.classes), *samples]
    return [[s.path, annotations.classes[s.label], s.split, s.group] for s in annotations.samples]


def _parts(
    source: str, annotations: Annotations, levels: tuple[int, ...], limit_s: float, videos_per_shard: int
) -> list[Part]:
    remote = annotations.remote_bytes
    root = annotations.root if remote else os.path.abspath(annotations.root)
    locations = [os.path.join(root, sample.path) for sample in annotations.samples]
    try:
        sizes = [remote[sample.path] for sample in annotations.samples] if remote else sizes_of(locations)
    except OSError as error:
        raise unreadable(source, error) from None
    videos = []
    for sample, location, num_bytes in zip(annotations.samples, locations, sizes, strict=True):
        videos.append(
            SourceVideo(
                location=location, path=sample.path, label=sample.label, split=sample.split, group=sample.group,
                num_bytes=num_bytes, actions=sample.actions,
            )
        )  # fmt: skip
    size = min(videos_per_shard, max(_MIN_VIDEOS, -(-len(videos) // _MIN_SHARDS)))
    return [
        Part(index=index, levels=levels, limit_s=limit_s, source=source, videos=tuple(videos[start : start + size]))
        for index, start in enumerate(range(0, len(videos), size))
    ]


def _stored_outcomes(folder: Folder, parts: Sequence[Part]) -> dict[int, Outcome]:
    """The parts that an earlier call finished, whose source files have not changed since, and whose broken videos would be broken again."""
    stored = set(Folder(folder.fs, folder.join(WORK)).names())
    outcomes = {}
    for part in parts:
        if os.path.basename(part.name) not in stored:
            continue
        try:
            outcome = Outcome.from_json(folder.read(part.name).to_pybytes().decode())
        except (ValueError, KeyError, TypeError):  # half-written, or of another version
            continue
        files = folder.infos([shard.name for shard in outcome.shards])
        whole = all(
            file.type == pafs.FileType.File and file.size == shard.num_bytes
            for file, shard in zip(files, outcome.shards, strict=True)
        )
        again = outcome.retry_above_s is not None and part.limit_s > outcome.retry_above_s
        if outcome.key == part.key() and whole and not again:
            outcomes[part.index] = outcome
    return outcomes


def _run(folder: Folder, parts: Sequence[Part], num_workers: int) -> Generator[Report, None, None]:
    """Encode the parts on the cluster; their reports as they come.

    Raises:
        DataError: their processes die again and again, or have no room for copies of videos.
    """
    if not parts:
        return
    call = uuid.uuid4().hex
    items = [{"part": pickle.dumps(part)} for part in parts]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.target_max_block_size = context.target_min_block_size = 1  # each report leaves its task at once

    def encode(batch: dict[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, list[Any]]]:
        for item in batch["part"]:
            for report in encode_part(folder, pickle.loads(item), call):
                yield {name: [value] for name, value in dataclasses.asdict(report).items()}

    with warnings.catch_warnings(
        category=RayDeprecationWarning, action="ignore"
    ):  # of `max_retries`, which has no other way in
        reports = dataset.map_batches(
            encode, batch_size=None, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=num_workers or None), max_retries=TASK_RETRIES
        )  # fmt: skip
    try:
        for table in reports.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            yield from (Report(**row) for row in table.to_pylist())
    except RayTaskError as error:
        raise own_error(error) from None
    except (WorkerCrashedError, OutOfMemoryError):
        raise DataError(
            "data.path", parts[0].source, f"a process that encodes its videos died {TASK_RETRIES + 1} times",
            "see Ray's logs for the reason (memory, or several videos that crash the decoder), then go on; what is done is kept",
        ) from None  # fmt: skip


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


def _finish(
    folder: Folder,
    source: str,
    source_digest: str,
    annotations: Annotations,
    levels: tuple[int, ...],
    outcomes: Sequence[Outcome],
) -> Manifest:
    """Write index and manifest, and remove what only an unfinished job needs.

    Raises:
        OSError: the folder cannot be written.
    """
    rows = [row for outcome in outcomes for row in outcome.rows]
    counts = {split: sum(row.split == split for row in rows) for split in SPLITS}
    for split, count in counts.items():
        if not count:
            raise DataError("data.path", source, f"has no {split} video that decodes", "add or repair videos")
    stored = tuple(
        Level(short_side=level, shards=tuple(outcome.shards[number] for outcome in outcomes))
        for number, level in enumerate(levels)
    )
    names = [level.name for level in stored]
    manifest = Manifest(
        version=MULTI_LABEL_VERSION if annotations.multi_label else VERSION,
        source=source,
        source_digest=source_digest,
        classes=annotations.classes,
        counts=counts,
        levels=stored,
        codec=CODEC,
        index=write_index(folder, rows, names, multi_label=annotations.multi_label),
        content_digest=content_digest(annotations.classes, rows, names, CODEC),
        broken=tuple(item for outcome in outcomes for item in outcome.broken),
    )
    folder.write(MANIFEST, manifest.to_json().encode())
    folder.delete(WORK)
    for level in names:
        _delete_stale(folder, level)
    return manifest


def _delete_stale(folder: Folder, level: str) -> None:
    """Remove half-written shards of tasks that were killed."""
    now = datetime.datetime.now(datetime.UTC)
    for info in folder.listed(level):
        if info.base_name.endswith(".tmp") and info.mtime is not None and now - info.mtime > _STALE:
            folder.answered(functools.partial(folder.fs.delete_file, info.path))
