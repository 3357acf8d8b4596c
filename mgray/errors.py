"""The errors that mgray raises at its users: each names field, value and remedy in one line.

Errors cross process borders (Ray pickles them), so each class rebuilds itself from its constructor arguments.
"""

from __future__ import annotations

import re


class MgrayError(Exception):
    """Base of every error that mgray raises on purpose; `str()` is one line fit for a terminal."""


_SECRET = re.compile(r"(\w+://[^\s:/@]+):[^\s@]+@")
"""The secret of an address such as s3://key:secret@bucket."""


class FieldError(MgrayError):
    """A field holds a value that cannot work.

    Args:
        field: dotted name as the user writes it, e.g. `plan.frames`.
        value: the value that was given.
        problem: what is wrong with it, e.g. `must be at least 1`.
        remedy: what to do instead, e.g. `give a positive number of frames`.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(_SECRET.sub(r"\1:***@", f"{field} = {value!r}: {problem}; {remedy}"))
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, object, str, str]]:
        return type(self), (self.field, self.value, self.problem, self.remedy)


class ConfigError(FieldError):
    """A configuration value is out of bounds, unknown, or contradicts another."""


class DataError(FieldError):
    """A dataset, annotation file, shard or video cannot be used."""


class VideoError(DataError):
    """One video cannot be opened or decoded."""


class SlowVideoError(VideoError):
    """One video does not decode within the time that is allowed."""


class UnreadVideoError(VideoError):
    """One video cannot be read at present: its disk, or the network that it is on, fails."""


class CheckpointError(FieldError):
    """A checkpoint is missing, cut off, or belongs to another plan or model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not whole; an earlier one of the run may be."""


class TrainingError(FieldError):
    """Training cannot go on (a non-finite loss, a block of another step, a lost process group)."""
