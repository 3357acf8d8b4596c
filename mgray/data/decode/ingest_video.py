"""A video as ingest stores it, wherever it lies."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

from mgray.data.decode.limits import DECODE_LIMIT_S, WORK_LIMITS
from mgray.data.decode.passthrough import index_packets
from mgray.data.decode.source_file import slow
from mgray.data.decode.transcode import Ingested, transcode
from mgray.data.shards.manifest import SOURCE
from mgray.data.storage import LISTING_LIMIT_S, READ_LIMIT_S, Readers, answered, fetched
from mgray.errors import UnreadVideoError, VideoError

_LOOK_S = 1.0
"""Seconds between two looks at what the work on a file has taken."""
_PIECE_BYTES = 1 << 20


def ingest_video(source: str, location: str, levels: tuple[int, ...], *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A video as `levels` store it; one behind an address is fetched first.

    Args:
        source: where the list of videos was found, with the user and options of its address.
        location: the video's own path or address.
        levels: as for `transcode`, or `SOURCE` for a table of its packets.

    Raises:
        SlowVideoError: it takes too long.
        UnreadVideoError: it cannot be read, also by other means than FFmpeg.
        VideoError: as `transcode`.
        DataError: there is no room for a copy of it.
        OSError: it cannot be fetched, or its file system does not answer.
    """
    if "://" in source:
        with fetched(source, location) as path:
            return _worked(functools.partial(transcode, path, levels, limit_s=limit_s), path, limit_s)
    read = index_packets if levels == SOURCE else functools.partial(transcode, short_sides=levels)
    work = functools.partial(read, location, limit_s=limit_s)
    try:
        return _worked(work, location, limit_s)
    except UnreadVideoError:
        if not answered(functools.partial(_is_readable, location), limit_s=LISTING_LIMIT_S):
            raise
    try:
        return _worked(work, location, limit_s)
    except UnreadVideoError as error:  # what FFmpeg says of some damaged files
        raise VideoError(error.field, error.value, error.problem, error.remedy) from None


def _is_readable(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_PIECE_BYTES):
                pass
    except OSError:
        return False
    return True


def _worked(work: Callable[[], Ingested], path: str, limit_s: float) -> Ingested:
    """What work on a file comes to, in a thread of its own: a file system or FFmpeg may hold it for ever.

    It is given up where its thread has had no CPU time for as long as a read may take, or too much.
    """
    started: list[tuple[int, float]] = []

    def begin() -> Ingested:
        started.append((time.pthread_getcpuclockid(threading.get_ident()), time.thread_time()))
        return work()

    readers = _readers()
    future = readers.submit(begin)
    look_s = min(_LOOK_S, READ_LIMIT_S / 2)
    busy_s = idle_s = 0.0  # counted in looks: a process that is halted for a while does neither
    while True:
        try:
            return future.result(look_s)
        except TimeoutError:
            if future.done():
                raise
        before_s = busy_s
        if started:
            clock, first = started[0]
            busy_s = time.clock_gettime(clock) - first
        idle_s = 0.0 if busy_s > before_s else idle_s + look_s
        if busy_s > WORK_LIMITS * limit_s:
            readers.leave(future)
            raise slow(path, f"takes more than {WORK_LIMITS * limit_s:g} s to decode and store")
        if idle_s > READ_LIMIT_S:
            readers.leave(future)
            raise TimeoutError(f"no answer within {READ_LIMIT_S:g} s")


@functools.lru_cache(maxsize=1)
def _readers() -> Readers:
    return Readers(1)
