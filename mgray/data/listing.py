"""What a list of videos says, before it is known where the videos are and which classes there are in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mgray.data.files import Files
from mgray.errors import DataError

VIDEO_ENDINGS = (
    ".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv",
)  # fmt: skip
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "val",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NamedAction:
    """A class that a video shows from `start_s` to `end_s`."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A video of a list: its path, or what its path ends in (without the file's ending) where the list does not say more."""

    path: str
    label: str
    """Its class; empty where it has actions."""
    split: str
    group: str
    place: str = ""
    """The list's line, for messages."""
    actions: tuple[NamedAction, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The videos of a published dataset's lists."""

    form: str
    """What the lists were recognised as."""
    entries: tuple[Entry, ...]
    classes: tuple[str, ...] = ()
    """In the dataset's own order; empty for the sorted names."""
    multi_label: bool = False
    """Each video has any number of classes, for a part of it each."""


def text_of(files: Files, path: str) -> str:
    """A list's text.

    Raises:
        DataError: it is no text in UTF-8.
    """
    try:
        return files.read(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise DataError("data.path", path, "is no text in UTF-8", "give a folder of videos or a list") from None


def is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_ENDINGS) and not name.startswith(".")
