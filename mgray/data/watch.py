"""Videos whose decoding ends the process: what the attempts of a task leave for each other.

The first attempt writes one small file. An attempt that finds it knows that the one before it ended without a word; it, and those
after it, write down each video before they begin with it, and leave out what has ended three of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextvars import ContextVar

from mgray.data.storage import Folder
from mgray.errors import VideoError

TASK_RETRIES = 8
"""Times that a task whose process dies is tried again; Ray Data alone tries for ever."""
ENDS = 3
"""Processes that a video may end before it is left out: some may have been ended from outside, or for others' memory."""
CRASHES = f"ended {ENDS} processes that decoded it (its decoder crashes, or memory runs out)"


class Watch:
    """What an attempt of a task knows of those before it, and leaves for those after it."""

    def __init__(self, folder: Folder, name: str, call: str) -> None:
        """Begin an attempt.

        Args:
            folder: where all attempts look.
            name: the task's file in it.
            call: what the attempts have in common. That of another call may have been ended by its user: of it only those videos
                count that had ended attempts before.

        Raises:
            OSError: the file cannot be read or written.
        """
        self._folder, self._name, self._call = folder, name, call
        self._ended: list[str] = []
        self._careful = self._take_up()
        self._write("")

    def refuses(self, video: str) -> bool:
        """Whether a video has ended too many attempts."""
        return self._ended.count(video) >= ENDS

    def begin(self, video: str) -> None:
        """Note what comes next, where an attempt has ended before; "" is nothing that could be left out.

        Raises:
            OSError: it cannot be written.
        """
        if self._careful:
            self._write(video)

    def end(self) -> None:
        """The task is done: leave nothing, as far as that can be deleted."""
        with contextlib.suppress(OSError):
            self._folder.answered(lambda: self._folder.fs.delete_file(self._folder.join(self._name)))

    def _take_up(self) -> bool:
        try:
            found = json.loads(self._folder.read(self._name).to_pybytes())
            same = bool(found["call"] == self._call)
            self._ended = [*found["ended"], *([found["at"]] if same and found["at"] else [])]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, half-written, or something else
            return False
        return same or bool(self._ended)

    def _write(self, video: str) -> None:
        record = {"call": self._call, "ended": self._ended, "at": video}
        self._folder.write(self._name, json.dumps(record).encode())


_CURRENT: ContextVar[Watch | None] = ContextVar("current", default=None)


@contextlib.contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """As long as the context lasts, `watch` hears of the videos that this thread begins with, as far as it can write that down."""
    token = _CURRENT.set(watch)
    try:
        yield
        if watch is not None:
            with contextlib.suppress(OSError):
                watch.begin("")
    finally:
        _CURRENT.reset(token)


def begin(video: str) -> None:
    """Say which video this thread decodes next.

    Raises:
        VideoError: it has ended too many attempts.
    """
    watch = _CURRENT.get()
    if watch is None:
        return
    if watch.refuses(video):
        raise VideoError("data.path", video, CRASHES, "repair the file, or take it out of the data")
    with contextlib.suppress(OSError):
        watch.begin(video)
