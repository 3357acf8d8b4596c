"""Folders and files that annotations are read from, local or in an object store (listed once, with all that is below)."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

import pyarrow.fs as pafs

from mgray.data.storage import Folder


class Files(Protocol):
    """What a source's readers ask of the place it lies in; paths are whole, as the source names them."""

    def is_file(self, path: str) -> bool: ...

    def is_folder(self, path: str) -> bool: ...

    def children(self, path: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder, sorted."""

    def read(self, path: str) -> bytes: ...


class LocalFiles:
    """The file system of this machine."""

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def children(self, path: str) -> tuple[list[str], list[str]]:
        with os.scandir(path) as found:
            items = sorted(found, key=lambda item: item.name)
        return [item.name for item in items if item.is_dir()], [item.name for item in items if item.is_file()]

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()


class RemoteFiles:
    """What lies below an address, or beside it where it is a file; paths are addresses without user and options."""

    def __init__(self, address: str) -> None:
        folder = Folder.of(address)
        self._scheme = address.partition("://")[0] + "://"
        self._fs = folder.fs
        self.source = self._scheme + folder.path
        is_list = self._fs.get_file_info(folder.path).type == pafs.FileType.File
        base = folder.path.rpartition("/")[0] if is_list else folder.path
        selector = pafs.FileSelector(base, allow_not_found=True, recursive=True)
        found = self._fs.get_file_info(selector)
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

    def is_folder(self, path: str) -> bool:
        return self._inner(path) in self._children

    def children(self, path: str) -> tuple[list[str], list[str]]:
        folders, files = self._children[self._inner(path)]
        return sorted(folders), sorted(files)

    def read(self, path: str) -> bytes:
        with self._fs.open_input_file(self._inner(path)) as file:
            return bytes(file.read())

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
