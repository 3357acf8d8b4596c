"""Files of a dataset on any file system that pyarrow knows: written whole, mapped where local, read in ranges elsewhere."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
import queue
import shutil
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs

from mgray.errors import DataError

GAP_BYTES = 64 << 10
"""Ranges that lie closer than this are read in one request: a request costs more than so many bytes."""
PATIENCE = 10
"""Attempts to read a clip or a video: a job does not end because a server is slow for a minute."""
READ_LIMIT_S = 120.0
"""Seconds after which a read of a clip's bytes counts as hung; longer than the attempts of S3's client take together."""
READ_ATTEMPTS = 3
"""Reads of a clip's bytes, where one hangs or fails for a reason that may pass."""
BACKOFF_S = 1.0
"""Seconds between the first two of them, doubled from one to the next."""
LOCAL_GAP_BYTES = 16 << 10
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Errors of a file system that the next attempt would meet too."""
_COPIED_BYTES = 8 << 20
_GCS_RETRY_S = 10
"""Google's client tries for 15 minutes on its own, that of S3 for about 10 s."""
_S3_SWITCHES = {"allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "force_virtual_addressing"}
"""Options of an S3 address that are true or false."""
_OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems of pyarrow in which an object is seen once all of it has been sent, and folders are no more than names."""


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
    def of(cls, path: str, attempts: int = 3) -> Folder:
        """The folder at a local path or an address such as s3://bucket/data.

        Args:
            attempts: how often a request to S3 is made before it counts as failed; 3 take about 10 s.

        Raises:
            DataError: no file system serves the address.
        """
        if "://" not in path:
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path)))
        try:
            return cls(*_file_system(path, attempts))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                "data.path", path, f"cannot be reached ({one_line(error)})", "check the address and the network"
            ) from None

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def retries_itself(self) -> bool:
        """Whether pyarrow's client has made its attempts when it raises."""
        return self.fs.type_name in ("s3", "gcs")

    def join(self, name: str) -> str:
        return f"{self.path}/{name}"

    def exists(self, name: str = "") -> bool:
        info = self.fs.get_file_info(self.join(name) if name else self.path)
        return bool(info.type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none where it does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of the files in one of its folders, by their paths within it: one request for a thousand of them."""
        selector = pafs.FileSelector(self.join(name), allow_not_found=True)
        found = self.fs.get_file_info(selector)
        return {f"{name}/{info.base_name}": info.size for info in found if info.type == pafs.FileType.File}

    def read(self, name: str) -> pa.Buffer:
        """All of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.fs.open_input_file(self.join(name)) as file:
            return file.read_buffer()

    def write(self, name: str, content: pa.Buffer | bytes) -> FileSum:
        """Write a file so that it is never seen half-written: elsewhere than in an object store under another name first."""
        target = self.join(name)
        if self.fs.type_name in _OBJECT_STORES:
            self._send(target, content)
        else:
            self.fs.create_dir(target.rpartition("/")[0], recursive=True)
            temporary = f"{target}.{uuid.uuid4().hex}.tmp"
            self._send(temporary, content)
            self.fs.move(temporary, target)
        return FileSum(name=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _send(self, path: str, content: pa.Buffer | bytes) -> None:
        with self.fs.open_output_stream(path) as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Remove a folder and all that it holds."""
        self.fs.delete_dir(self.join(name))


@functools.lru_cache(maxsize=64)
def _file_system(address: str, attempts: int) -> tuple[pafs.FileSystem, str]:
    """The file system of an address and the path in it; kept, since to find the region of a bucket takes a request."""
    if address.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in address:
        address += f"{'&' if '?' in address else '?'}retry_limit_seconds={_GCS_RETRY_S}"
    fs, path = pafs.FileSystem.from_uri(address)
    if isinstance(fs, pafs.S3FileSystem):  # what from_uri makes tries for minutes where a server is silent
        url = urllib.parse.urlsplit(address)
        options: dict[str, Any] = dict(urllib.parse.parse_qsl(url.query))
        for name in options.keys() & _S3_SWITCHES:
            options[name] = options[name].lower() in ("true", "1")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options.setdefault("endpoint_override", endpoint)
        if url.username == "anonymous":
            options["anonymous"] = True
        elif url.username and url.password:
            options["access_key"], options["secret_key"] = map(urllib.parse.unquote, (url.username, url.password))
        strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=attempts)
        fs = pafs.S3FileSystem(**{"region": fs.region, **options, "retry_strategy": strategy})
    return fs, path.rstrip("/")


@contextlib.contextmanager
def fetched(address: str, path: str) -> Iterator[str]:
    """A local copy, for as long as the context lasts, of a file that lies behind an address.

    Args:
        address: where it was found, with user and options.
        path: the file's own address, without them.

    Raises:
        OSError: it cannot be read.
    """
    inner = path.partition("://")[2]
    with tempfile.NamedTemporaryFile(suffix=os.path.splitext(inner)[1]) as copy:
        with Folder.of(address, PATIENCE).fs.open_input_file(inner) as file:
            shutil.copyfileobj(file, copy, _COPIED_BYTES)
        copy.flush()
        yield copy.name


def bare(address: str) -> str:
    """A local path made absolute, or an address without user and options, as it may be recorded."""
    if "://" not in address:
        return os.path.abspath(os.path.expanduser(address))
    return f"{address.partition('://')[0]}://{Folder.of(address).path}"


def one_line(error: Exception) -> str:
    """What a file system says of an error, without line breaks."""
    return " ".join(str(error).split())


def unreadable(path: str, error: Exception) -> DataError:
    """The error of a file system that does not answer, or refuses."""
    remedy = "check that you may read it"
    if "://" in path:
        remedy = "check the address, the network and your credentials (for S3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL)"
    return DataError("data.path", path, f"cannot be read ({one_line(error)})", remedy)


class MappedFile:
    """A local file, mapped into memory: nothing is read before it is used, and nothing is copied."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)

    def __len__(self) -> int:
        return len(self.view)


class LocalFile:
    """A local file, or one on a network file system, read in ranges without holding up other threads."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed when it is forgotten

    def __len__(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read_into(self, target: npt.NDArray[np.uint8], offset: int, wanted: Iterable[tuple[int, int]]) -> None:
        """Fill the `wanted` (begin, end) ranges of `target`, whose first byte is the file's byte `offset`.

        Raises:
            EOFError: the file is not as long as it should be.
            OSError: it cannot be read.
        """
        view = target.data
        for begin, end in coalesced(wanted, LOCAL_GAP_BYTES):
            while begin < end:
                count = os.preadv(self._file.fileno(), [view[begin:end]], offset + begin)
                if not count:
                    raise EOFError(f"it ends {end - begin} bytes too soon")
                begin += count


class RemoteFile:
    """A file behind a file system of pyarrow, opened when something of it is first read."""

    def __init__(self, folder: Folder, name: str, num_bytes: int) -> None:
        self._fs, self._path, self._num_bytes = folder.fs, folder.join(name), num_bytes
        self._file: pa.NativeFile | None = None
        self._opening = threading.Lock()

    def read_into(self, target: npt.NDArray[np.uint8], offset: int, wanted: Iterable[tuple[int, int]]) -> None:
        """Fill the `wanted` (begin, end) ranges of `target`, whose first byte is the file's byte `offset`.

        Raises:
            EOFError: the file is not as long as it should be.
            OSError: it cannot be read.
        """
        file = self._opened()
        for begin, end in coalesced(wanted):
            content = file.read_at(end - begin, offset + begin)
            if len(content) != end - begin:
                raise EOFError(f"{len(content)} bytes instead of {end - begin}")
            target[begin:end] = np.frombuffer(content, np.uint8)

    def _opened(self) -> pa.NativeFile:
        with self._opening:  # several threads begin with clips of one shard
            if self._file is None:
                file = self._fs.open_input_file(self._path)
                if file.size() != self._num_bytes:
                    raise EOFError(f"it has {file.size()} bytes instead of {self._num_bytes}")
                self._file = file
            return self._file


def coalesced(ranges: Iterable[tuple[int, int]], gap: int = GAP_BYTES) -> Iterator[tuple[int, int]]:
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


T = TypeVar("T")


class Readers:
    """Daemon threads that read; one that hangs is left behind, and another takes its place.

    A read of a network file system that does not answer cannot be interrupted, but need not be waited for.
    """

    def __init__(
        self,
        threads: int,
        *,
        limit_s: float = READ_LIMIT_S,
        attempts: int = READ_ATTEMPTS,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self.limit_s, self.attempts, self.backoff_s = limit_s, attempts, backoff_s
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        for _ in range(threads):
            self._add_thread()

    def start(self, read: Callable[[], T], *, retry_errors: bool = True) -> Reading[T]:
        """Begin to read; `retry_errors` is for what does not make several attempts itself."""
        return Reading(self, read, retry_errors)

    def submit(self, read: Callable[[], T]) -> Future[T]:
        """One attempt."""
        future: Future[T] = Future()
        self._tasks.put((future, read))
        return future

    def leave(self, future: Future[Any]) -> None:
        """Give up an attempt; a thread that it keeps is replaced."""
        if not future.cancel() and not future.done():
            self._add_thread()

    def _add_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="mgray-read").start()

    def _work(self) -> None:
        while True:
            future, read = self._tasks.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = read()
            except BaseException as error:  # crosses to the thread that waits
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, read


class Reading(Generic[T]):
    """A read that was begun."""

    def __init__(self, readers: Readers, read: Callable[[], T], retry_errors: bool) -> None:
        self._readers, self._read, self._retry_errors = readers, read, retry_errors
        self._future = readers.submit(read)

    def result(self) -> T:
        """What was read; waits for it, and makes another attempt where one hangs or fails, a bounded number of times.

        Raises:
            OSError: of the last attempt (TimeoutError where that one hung).
        """
        readers = self._readers
        for attempt in range(readers.attempts):
            if attempt:
                time.sleep(readers.backoff_s * 2 ** (attempt - 1))
                self._future = readers.submit(self._read)
            last = attempt == readers.attempts - 1
            try:
                return self._future.result(readers.limit_s)
            except TimeoutError:
                if not self._future.done():
                    readers.leave(self._future)
                    problem = f"no answer within {readers.limit_s:g} s, {readers.attempts} times"
                    if last:
                        raise TimeoutError(problem) from None
                elif last or not self._retry_errors:
                    raise
            except OSError as error:
                if last or not self._retry_errors or isinstance(error, _FINAL):
                    raise
        raise AssertionError("an attempt returns or raises")

    def cancel(self) -> None:
        """Not wanted any more."""
        self._future.cancel()
