"""What FFmpeg may take of memory and time, and how it says that it was given up."""

from __future__ import annotations

import errno

import av

DECODE_LIMIT_S = 600.0
"""Seconds of CPU time that decoding takes after which ingest gives a file up: an hour and more of full HD."""
WORK_LIMITS = 10
"""Times its limit that all work on a file may take: decoding, encoding, trying whether it can be passed through."""
CLIP_LIMIT_S = 120.0
"""Seconds of CPU time after which the clips that a batch has of one video are given up. Not of wall time: how busy a machine is must
not decide what is trained on."""
MAX_SIDE = 16384
"""Pixels; larger frames are refused."""
MAX_PIXELS = 1 << 26
"""Pixels of a frame; larger ones are refused before memory is taken for them."""
DECODE_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
_GIVEN_UP = int.from_bytes(b"EXIT", "little")
"""FFmpeg's error number where reading took longer than allowed (AVERROR_EXIT)."""


DISK_ERRORS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO, _GIVEN_UP})
"""Error numbers of a disk or network that fails; FFmpeg takes some for files that are damaged too."""


def reason(error: Exception) -> str:
    """What went wrong in FFmpeg or the file system, in a few words."""
    if isinstance(error, av.FFmpegError) and error.errno == _GIVEN_UP:
        return "not read within the time that is allowed"
    return getattr(error, "strerror", None) or str(error)
