"""A source file as packets at several levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mgray.data.decode.encode import LevelEncoder
from mgray.data.decode.limits import DECODE_LIMIT_S
from mgray.data.decode.picture import quarter_turns
from mgray.data.decode.source_file import SourceFile
from mgray.data.shards.index import SourceProbe
from mgray.data.shards.packets import StoredVideo


@dataclass(frozen=True, slots=True)
class Ingested:
    """A source file as it is stored: at each level (None where a finer one serves as well), and what kind of file it was."""

    levels: tuple[StoredVideo | None, ...]
    probe: SourceProbe


def transcode(path: str, short_sides: Sequence[int], *, limit_s: float = DECODE_LIMIT_S) -> Ingested:
    """A source file as packets at levels of at most `short_sides` pixels (falling; even sizes, never enlarged).

    Every frame that a sequential decoder shows is kept, in display order and upright; time stamps become frame numbers.

    Args:
        limit_s: seconds of CPU time of decoding after which a file is given up.

    Raises:
        VideoError: missing, empty, cut off, damaged, endless, of changing size, or no video in it.
    """
    encoders: list[LevelEncoder | None] = []
    with SourceFile(path, limit_s) as source:
        for frame in source.frames():
            if not encoders:
                sizes = [level_size(source.width, source.height, side) for side in short_sides]
                encoders = [
                    LevelEncoder(*size, quarter_turns=quarter_turns(frame)) if size not in sizes[:number] else None
                    for number, size in enumerate(sizes)
                ]
            for encoder in encoders:
                if encoder is not None:
                    encoder.add(frame)
        info, probe = source.finish()
    return Ingested(tuple(None if encoder is None else encoder.finish(info) for encoder in encoders), probe)


def level_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height in pixels at a level: even, short side at most `short_side`."""
    scale = min(1.0, short_side / min(width, height))

    def even(size: int) -> int:
        return max(2, 2 * min(round(size * scale / 2), size // 2))

    return even(width), even(height)
