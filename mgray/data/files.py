"""Folders and files that annotations are read from, local or in an object store (listed once, with all that is below)."""

from __future__ import annotations

import functools
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow.fs as pafs

from mgray.data.storage import LISTING_LIMIT_S, Folder, answered

_AT_ONCE = 256
"""Files that are looked at in one request: to wait for each by itself would cost more than the look."""


class Files(Protocol):
    """What a source's readers ask of the place it lies in; paths are whole, as the source names them."""

    def is_file(self, path: str) -> bool: ...

    def missing(self, root: str, names: Sequence[str]) -> list[str]:
        """Those of some paths from `root` that are no files."""

    def is_folder(self, path: str) -> bool: ...

    def children(self, path: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder, sorted."""

    def read(self, path: str) -> bytes: ...


class LocalFiles:
    """The file systems of this machine, one of which may be on a network and hang."""

    def is_file(self, path: str) -> bool:
        return answered(lambda: os.path.isfile(path))

    def missing(self, root: str, names: Sequence[str]) -> list[str]:
        return [name for batch in _batches(names) for name in answered(functools.partial(_not_files, root, batch))]

    def is_folder(self, path: str) -> bool:
        return answered(lambda: os.path.isdir(path))

    def children(self, path: str) -> tuple[list[str], list[str]]:
        return answered(lambda: _children(path))

    def read(self, path: str) -> bytes:
        return answered(lambda: _read(path))


def _batches(items: Sequence[str]) -> Iterator[Sequence[str]]:
    return (items[first : first + _AT_ONCE] for first in range(0, len(items), _AT_ONCE))


def _not_files(root: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if not os.path.isfile(os.path.join(root, name))]


def _children(path: str) -> tuple[list[str], list[str]]:
    with os.scandir(path) as found:
        items = sorted(found, key=lambda item: item.name)
    return [item.name for item in items if item.is_dir()], [item.name for item in items if item.is_file()]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def sizes_of(paths: Sequence[str]) -> list[int]:
    """Bytes of local files.

    Raises:
        OSError: one cannot be looked at.
    """
    return [size for batch in _batches(paths) for size in answered(functools.partial(_sizes, batch))]


def _sizes(paths: Sequence[str]) -> list[int]:
    return [os.path.getsize(path) for path in paths]


class RemoteFiles:
    """What lies below an address, or beside it where it is a file; paths are addresses without user and options."""

    def __init__(self, address: str) -> None:
        folder = Folder.of(address)
        self._scheme = address.partition("://")[0] + "://"
        self._folder, self._fs = folder, folder.fs
        self.source = self._scheme + folder.path
        is_list = folder.answered(lambda: self._fs.get_file_info(folder.path)).type == pafs.FileType.File
        base = folder.path.rpartition("/")[0] if is_list else folder.path
        selector = pafs.FileSelector(base, allow_not_found=True, recursive=True)
        found = folder.answered(lambda: self._fs.get_file_info(selector), limit_s=LISTING_LIMIT_S)
        self._bytes: dict[str, int] = {info.path: info.size for info in found if info.type == pafs.FileType.File}
        self._children: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
        for path in self._bytes:
            parent, _, name = path.rpartition("/")
            self._children[parent][1].add(name)
            while parent != base:
                parent, _, name = parent.rpartition("/")
                self._children[parent][0].add(name)

    def is_file(self, path: str) -> bool:
        return self._inner(path) in self._bytes

    def missing(self, root: str, names: Sequence[str]) -> list[str]:
        return [name for name in names if not self.is_file(os.path.join(root, name))]

    def is_folder(self, path: str) -> bool:
        return self._inner(path) in self._children

    def children(self, path: str) -> tuple[list[str], list[str]]:
        folders, files = self._children[self._inner(path)]
        return sorted(folders), sorted(files)

    def read(self, path: str) -> bytes:
        return b"".join(self._folder.pieces(self._inner(path)))

    def num_bytes(self, path: str) -> int:
        return self._bytes[self._inner(path)]

    def _inner(self, path: str) -> str:
        return posixpath.normpath(path.removeprefix(self._scheme))


def files_of(source: str) -> tuple[Files, str]:
    """Where a source lies, and the path by which it is known there.

    Raises:
        OSError: an object store does not answer.
    """
    if "://" not in source:
        return LocalFiles(), os.path.expanduser(source)
    files = RemoteFiles(source)
    return files, files.source


def all_files(files: Files, root: str) -> Iterator[str]:
    """All files below a folder, as paths from it; what is hidden is left out."""
    pending = [""]
    while pending:
        inner = pending.pop()
        folders, names = files.children(os.path.join(root, inner) if inner else root)
        prefix = f"{inner}/" if inner else ""
        yield from (prefix + name for name in names if not name.startswith("."))
        pending += [prefix + name for name in reversed(folders) if not name.startswith(".")]
