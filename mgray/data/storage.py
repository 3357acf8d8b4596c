"""Files of a dataset on any file system that pyarrow knows: written whole, mapped where local, read in ranges elsewhere."""

from __future__ import annotations

import hashlib
import mmap
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs

from mgray.errors import DataError

_GAP_BYTES = 64 << 10
"""Ranges that lie closer than this are read in one request: a request costs more than so many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSum:
    """A file of a dataset, by its path within the folder."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a file system that pyarrow knows; local paths are made absolute."""

    fs: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, path: str) -> Folder:
        """The folder at a local path or an address such as s3://bucket/data.

        Raises:
            DataError: no file system serves the address.
        """
        if "://" not in path:
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path)))
        try:
            fs, inner = pafs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError("data.path", path, f"cannot be reached ({error})", "check the address") from None
        return cls(fs, inner)

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def join(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str = "") -> bool:
        info = self.fs.get_file_info(self.join(name) if name else self.path)
        return bool(info.type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none where it does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read(self, name: str) -> pa.Buffer:
        """All of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.fs.open_input_file(self.join(name)) as file:
            return file.read_buffer()

    def write(self, name: str, content: pa.Buffer | bytes) -> FileSum:
        """Write a file under another name, then rename it: it is never seen half-written."""
        target = self.join(name)
        self.fs.create_dir(target.rpartition("/")[0], recursive=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        with self.fs.open_output_stream(temporary) as file:
            file.write(content)
        self.fs.move(temporary, target)
        return FileSum(name=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def delete(self, name: str) -> None:
        """Remove a folder and all that it holds."""
        self.fs.delete_dir(self.join(name))


class MappedFile:
    """A local file, mapped into memory: nothing is read before it is used, and nothing is copied."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)

    def __len__(self) -> int:
        return len(self.view)


class RemoteFile:
    """A file behind a file system of pyarrow."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file

    def read_into(self, target: npt.NDArray[np.uint8], offset: int, wanted: Iterable[tuple[int, int]]) -> None:
        """Fill the `wanted` (begin, end) ranges of `target`, whose first byte is the file's byte `offset`."""
        for begin, end in coalesced(wanted):
            content = self._file.read_at(end - begin, offset + begin)
            if len(content) != end - begin:
                raise EOFError(f"{len(content)} bytes instead of {end - begin}")
            target[begin:end] = np.frombuffer(content, np.uint8)


def coalesced(ranges: Iterable[tuple[int, int]], gap: int = _GAP_BYTES) -> Iterator[tuple[int, int]]:
    """Rising (begin, end) ranges, joined where fewer than `gap` bytes lie between two."""
    begin = end = None
    for first, last in ranges:
        if begin is None or end is None:
            begin, end = first, last
        elif first - end < gap:
            end = max(end, last)
        else:
            yield begin, end
            begin, end = first, last
    if begin is not None and end is not None:
        yield begin, end


def open_file(folder: Folder, name: str) -> MappedFile | RemoteFile:
    """A file of a folder for random access.

    Raises:
        OSError: it cannot be opened.
    """
    path = folder.join(name)
    return MappedFile(path) if folder.is_local else RemoteFile(folder.fs.open_input_file(path))
