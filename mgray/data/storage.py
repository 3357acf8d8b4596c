"""Files of a dataset on any file system that pyarrow knows: written whole, read in ranges."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
import queue
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
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
"""Seconds after which a read of a clip's bytes, or of a piece of a file, counts as hung; longer than the attempts of S3's client take together."""
WRITE_BYTES_PER_S = 1 << 20
"""A write may take as long as a read, and a second more for each so many bytes."""
LISTING_LIMIT_S = 1800.0
"""Seconds after which a listing of all that is below an address counts as hung: a bucket may hold millions of files."""
READ_ATTEMPTS = 3
"""Reads, where one hangs or fails for a reason that may pass."""
BACKOFF_S = 1.0
"""Seconds between the first two of them, doubled from one to the next."""
LOCAL_GAP_BYTES = 16 << 10
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Errors of a file system that the next attempt would meet too."""
_PIECE_BYTES = 16 << 20
"""What is read of a file at once: its limit of time is one for each piece."""
_OPENING_S = 10.0
"""Seconds that a thread waits for another to open a file before it opens it itself."""
_WAITING = 4
"""Threads that read what is needed now: manifests, lists, pieces of videos."""
_GCS_RETRY_S = 10
"""Google's client tries for 15 minutes on its own, that of S3 for about 10 s."""
_S3_SWITCHES = {"allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "force_virtual_addressing"}
"""Options of an S3 address that are true or false."""
T = TypeVar("T")
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
        info = self.answered(lambda: self.fs.get_file_info(self.join(name) if name else self.path))
        return bool(info.type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; none where it does not exist."""
        return sorted(info.base_name for info in self.listed())

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of the files in one of its folders, by their paths within it: one request for a thousand of them."""
        found = self.listed(name)
        return {f"{name}/{info.base_name}": info.size for info in found if info.type == pafs.FileType.File}

    def infos(self, names: Sequence[str]) -> list[pafs.FileInfo]:
        """What kind some of its files are of, and their bytes."""
        paths = [self.join(name) for name in names]
        return self.answered(lambda: self.fs.get_file_info(paths))

    def listed(self, name: str = "") -> list[pafs.FileInfo]:
        """The files and folders in it, or in one of its folders; none where it does not exist."""
        selector = pafs.FileSelector(self.join(name) if name else self.path, allow_not_found=True)
        return self.answered(lambda: self.fs.get_file_info(selector))

    def answered(self, ask: Callable[[], T], *, limit_s: float | None = None) -> T:
        """What a request to its file system comes to; see `answered`."""
        return answered(ask, retry_errors=not self.retries_itself, limit_s=limit_s)

    def read(self, name: str) -> pa.Buffer:
        """All of a file.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read (TimeoutError where nothing comes).
        """
        first, *others = self.pieces(self.join(name))
        return pa.py_buffer(b"".join([first, *others])) if others else first

    def pieces(self, path: str) -> Iterator[pa.Buffer]:
        """A file of this file system from beginning to end, at least one piece; each has its own limit of time and attempts.

        Raises:
            OSError: it cannot be read (TimeoutError where nothing comes).
        """
        opened: list[pa.NativeFile] = []
        offset, size = 0, _PIECE_BYTES
        while size == _PIECE_BYTES:
            content = self.answered(functools.partial(self._piece, path, offset, opened))
            size = len(content)
            offset += size
            if size or offset == 0:
                yield content
        for file in opened:
            file.close()

    def _piece(self, path: str, offset: int, opened: list[pa.NativeFile]) -> pa.Buffer:
        # a file whose read hangs stays out of the list: the next attempt opens another
        file = opened.pop() if opened else self.fs.open_input_file(path)
        file.seek(offset)
        content = file.read_buffer(_PIECE_BYTES)
        opened.append(file)
        return content

    def write(self, name: str, content: pa.Buffer | bytes) -> FileSum:
        """Write a file so that it is never seen half-written: elsewhere than in an object store under another name first.

        An attempt that is given up may still end later: it writes the same.

        Raises:
            OSError: it cannot be written (TimeoutError where the file system does not answer).
        """
        limit_s = waiting_readers().limit_s + len(content) / WRITE_BYTES_PER_S
        self.answered(functools.partial(self._write, self.join(name), content), limit_s=limit_s)
        return FileSum(name=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _write(self, target: str, content: pa.Buffer | bytes) -> None:
        path = target
        if self.fs.type_name not in _OBJECT_STORES:
            self.fs.create_dir(target.rpartition("/")[0], recursive=True)
            path = f"{target}.{uuid.uuid4().hex}.tmp"
        with self.fs.open_output_stream(path) as file:
            file.write(content)
        if path != target:
            self.fs.move(path, target)

    def delete(self, name: str) -> None:
        """Remove a folder and all that it holds; none is no error (in Google's store a folder is a name that objects share)."""
        with contextlib.suppress(FileNotFoundError):
            self.answered(lambda: self.fs.delete_dir(self.join(name)), limit_s=LISTING_LIMIT_S)


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
        DataError: there is no room for a copy.
    """
    inner = path.partition("://")[2]
    with contextlib.ExitStack() as stack:
        with _room_for(path):
            # without a buffer, which closing would try to write once more
            copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=os.path.splitext(inner)[1], buffering=0))
        for piece in Folder.of(address, PATIENCE).pieces(inner):
            left = memoryview(piece)
            with _room_for(path):
                while left:
                    left = left[copy.write(left) :]
        yield copy.name


@contextlib.contextmanager
def _room_for(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            "TMPDIR", tempfile.gettempdir(), f"cannot hold a copy of {path} while it is encoded ({one_line(error)})",
            "free space there, or set TMPDIR to a folder that has some, then go on",
        ) from None  # fmt: skip


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
    if isinstance(error, TimeoutError):
        remedy = "check the disk or file system that it is on, which does not answer"
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
        if self._file is None:
            # several threads begin with clips of one shard; they wait for one to open it, unless it hangs
            held = self._opening.acquire(timeout=_OPENING_S)
            try:
                if self._file is None:
                    file = self._fs.open_input_file(self._path)
                    if file.size() != self._num_bytes:
                        raise EOFError(f"it has {file.size()} bytes instead of {self._num_bytes}")
                    self._file = file
            finally:
                if held:
                    self._opening.release()
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
        self._lock = threading.Lock()
        self._left: set[Future[Any]] = set()
        for _ in range(threads):
            self._add_thread()

    def start(self, read: Callable[[], T], *, retry_errors: bool = True, limit_s: float | None = None) -> Reading[T]:
        """Begin to read.

        Args:
            retry_errors: for what does not make several attempts itself.
            limit_s: seconds an attempt may take, where that is not what these threads allow.
        """
        return Reading(self, read, retry_errors, self.limit_s if limit_s is None else limit_s)

    def submit(self, read: Callable[[], T]) -> Future[T]:
        """One attempt."""
        future: Future[T] = Future()
        self._tasks.put((future, read))
        return future

    def leave(self, future: Future[Any]) -> None:
        """Give up an attempt; a thread that it keeps is replaced, and ends if it comes back."""
        with self._lock:
            if future.cancel() or future.done():
                return
            self._left.add(future)
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
            with self._lock:
                if future in self._left:
                    self._left.remove(future)
                    return
            del future, read


class Reading(Generic[T]):
    """A read that was begun."""

    def __init__(self, readers: Readers, read: Callable[[], T], retry_errors: bool, limit_s: float) -> None:
        self._readers, self._read, self._retry_errors, self._limit_s = readers, read, retry_errors, limit_s
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
                return self._future.result(self._limit_s)
            except TimeoutError:
                if not self._future.done():
                    readers.leave(self._future)
                    times = f", {readers.attempts} times" if readers.attempts > 1 else ""
                    problem = f"no answer within {self._limit_s:g} s{times}"
                    if last:
                        raise TimeoutError(problem) from None
                elif last or not self._retry_errors:
                    raise
            except OSError as error:
                if last or not self._retry_errors or isinstance(error, _FINAL):
                    raise
        raise AssertionError("an attempt returns or raises")

    def cancel(self) -> None:
        """Not wanted any more: a thread that it keeps must not be one less for others."""
        self._readers.leave(self._future)


def answered(ask: Callable[[], T], *, retry_errors: bool = True, limit_s: float | None = None) -> T:
    """What a request to a file system comes to: it has a limit of time, and several attempts with pauses in between.

    It costs some 50 microseconds, the way to a thread and back: hot paths ask many things at once.

    Args:
        ask: asks nothing by way of this function again.
        retry_errors: for what does not make several attempts itself.
        limit_s: seconds for an attempt; READ_LIMIT_S without it.

    Raises:
        OSError: of the last attempt (TimeoutError where that one hung).
    """
    return waiting_readers().start(ask, retry_errors=retry_errors, limit_s=limit_s).result()


@functools.lru_cache(maxsize=1)
def waiting_readers() -> Readers:
    """The threads of `answered`."""
    return Readers(_WAITING)
