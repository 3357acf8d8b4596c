"""What an ingest will take, from encoding a few of its videos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mgray.data.annotations import read_annotations
from mgray.data.decode.ingest_video import ingest_video
from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.files import sizes_of
from mgray.data.ingest_settings import check_settings
from mgray.data.shards.manifest import Broken, level_name
from mgray.data.storage import unreadable
from mgray.errors import VideoError

_VIDEOS = 32
_BUDGET_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Size and time of an ingest, extrapolated by the bytes of its sources."""

    videos: int
    source_bytes: int
    tried: int
    """Videos that were encoded for it."""
    stored_bytes: dict[str, int]
    """By level."""
    cpu_s: float
    """Seconds of one core."""
    broken: tuple[Broken, ...]
    """Of those tried."""


def estimate(
    source: str,
    levels: Sequence[int],
    *,
    val_fraction: float = 0.2,
    videos: str = "",
    limit_s: float = DECODE_LIMIT_S,
    budget_s: float = _BUDGET_S,
) -> Estimate:
    """Encode videos that are spread over the list, as many as `budget_s` seconds allow and at most 32, and write nothing.

    Args:
        levels: as for `ingest`.

    Raises:
        DataError: the source, or a setting, cannot be used.
    """
    check_settings(levels, val_fraction=val_fraction, limit_s=limit_s)
    annotations = read_annotations(source, val_fraction=val_fraction, videos=videos)
    locations = [annotations.locate(sample) for sample in annotations.samples]
    remote = annotations.remote_bytes
    try:
        sizes = [remote[s.path] for s in annotations.samples] if remote else sizes_of(locations)
    except OSError as error:
        raise unreadable(videos or source, error) from None
    count = min(_VIDEOS, len(locations))
    stored, broken = dict.fromkeys(map(level_name, levels), 0), []
    tried_bytes = tried = 0
    started, cpu = time.monotonic(), time.process_time()
    for number in (index * len(locations) // count for index in range(count)):
        if tried and time.monotonic() - started > budget_s:
            break
        tried += 1
        tried_bytes += sizes[number]
        try:
            video = ingest_video(videos or source, locations[number], tuple(levels), limit_s=limit_s)
        except VideoError as error:
            broken.append(Broken(path=annotations.samples[number].path, reason=error.problem))
            continue
        except OSError as error:
            raise unreadable(videos or source, error) from None
        for level, part in zip(stored, video.levels, strict=True):
            stored[level] += 0 if part is None else part.to_batch().nbytes
    scale = sum(sizes) / max(1, tried_bytes)
    return Estimate(
        videos=len(locations),
        source_bytes=sum(sizes),
        tried=tried,
        stored_bytes={level: round(size * scale) for level, size in stored.items()},
        cpu_s=(time.process_time() - cpu) * scale,
        broken=tuple(broken),
    )
