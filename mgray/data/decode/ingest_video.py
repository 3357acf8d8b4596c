"""A video as ingest stores it, wherever it lies."""

from __future__ import annotations

import functools

from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.decode.passthrough import index_packets
from mgray.data.decode.transcode import Ingested, transcode
from mgray.data.shards.manifest import SOURCE
from mgray.data.storage import READ_LIMIT_S, Readers, fetched


def ingest_video(source: str, location: str, levels: tuple[int, ...], *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A video as `levels` store it; one behind an address is fetched first.

    Args:
        source: where the list of videos was found, with the user and options of its address.
        location: the video's own path or address.
        levels: as for `transcode`, or `SOURCE` for a table of its packets.

    Raises:
        VideoError: as `transcode`.
        OSError: it cannot be fetched, or its file system does not answer.
    """
    if "://" in source:
        with fetched(source, location) as path:
            return transcode(path, levels, limit_s=limit_s)
    read = index_packets if levels == SOURCE else functools.partial(transcode, short_sides=levels)
    return _waited_for(limit_s).start(functools.partial(read, location, limit_s=limit_s)).result()


@functools.lru_cache(maxsize=4)
def _waited_for(limit_s: float) -> Readers:
    """A thread for files that may never answer, which decoding's own limit does not see; one hung call is enough to know."""
    return Readers(1, limit_s=limit_s + READ_LIMIT_S, attempts=1)
