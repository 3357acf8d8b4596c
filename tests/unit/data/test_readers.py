"""Reads that hang or fail are tried again, a bounded number of times."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from mgray.data.shards import shard_set
from mgray.data.shards.shard_set import ShardSet
from mgray.data.storage import LocalFile, Readers
from mgray.errors import DataError, VideoError
from tests.support.shards import write_shards


class Flaky:
    """Hangs, or fails, a number of times before it answers."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.times, self.error, self.calls = times, error, 0
        self.released = threading.Event()

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            if self.error is not None:
                raise self.error
            self.released.wait(10)
        return "content"


@pytest.fixture
def readers() -> Readers:
    return Readers(2, limit_s=0.05, attempts=3, backoff_s=0.01)


@pytest.mark.parametrize("error", [None, OSError("lost the connection"), TimeoutError("timed out")])
def test_the_third_attempt_answers(readers: Readers, error: Exception | None) -> None:
    read = Flaky(2, error)
    assert readers.start(read).result() == "content"
    assert read.calls == 3
    read.released.set()


def test_hung_threads_are_replaced(readers: Readers) -> None:
    hung = [Flaky(99) for _ in range(3)]
    for read in hung:
        with pytest.raises(TimeoutError, match=r"no answer within 0.05 s, 3 times"):
            readers.start(read).result()
    assert readers.start(lambda: 7).result() == 7
    for read in hung:
        read.released.set()


def test_hung_threads_of_what_is_not_wanted_any_more_are_replaced() -> None:
    def names() -> int:
        return sum(thread.name == "mgray-read" for thread in threading.enumerate())

    before = names()
    readers = Readers(2, limit_s=5, attempts=1)
    hung = [Flaky(99) for _ in range(2)]
    readings = [readers.start(read) for read in hung]
    while not all(read.calls for read in hung):
        time.sleep(0.001)
    for reading in readings:
        reading.cancel()
    assert readers.start(lambda: 7).result() == 7
    for read in hung:
        read.released.set()
    until = time.monotonic() + 5
    while names() > before + 2 and time.monotonic() < until:
        time.sleep(0.001)
    assert names() == before + 2


def test_attempts_are_bounded_and_wait_longer_each_time() -> None:
    readers = Readers(1, limit_s=5, attempts=3, backoff_s=0.05)
    read = Flaky(99, OSError("no route"))
    started = time.monotonic()
    with pytest.raises(OSError, match="no route"):
        readers.start(read).result()
    assert read.calls == 3 and time.monotonic() - started >= 0.15


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no"), EOFError("short"), KeyError("x")])
def test_what_would_fail_again_is_not_tried_again(readers: Readers, error: Exception) -> None:
    read = Flaky(99, error)
    with pytest.raises(type(error)):
        readers.start(read).result()
    assert read.calls == 1


def test_a_client_that_tries_itself_is_retried_only_where_it_hangs(readers: Readers) -> None:
    read = Flaky(99, OSError("AWS Error"))
    with pytest.raises(OSError, match="AWS Error"):
        readers.start(read, retry_errors=False).result()
    assert read.calls == 1
    hung = Flaky(2)
    assert readers.start(hung, retry_errors=False).result() == "content"
    hung.released.set()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("flaky"), train=3, val=1)


def failing(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> list[int]:
    """Let the next reads of local files hang (None) or fail; the list grows with each."""
    monkeypatch.setattr(shard_set, "_readers", lambda: READERS)
    queue, calls, whole = list(outcomes), [], LocalFile.read_into

    def read_into(file: LocalFile, target, offset, wanted) -> None:  # type: ignore[no-untyped-def]
        calls.append(offset)
        if queue:
            error = queue.pop(0)
            if error is None:
                time.sleep(0.5)
            else:
                raise error
        whole(file, target, offset, wanted)

    monkeypatch.setattr(LocalFile, "read_into", read_into)
    return calls


READERS = Readers(4, limit_s=0.1, attempts=3, backoff_s=0.01)


def test_a_video_whose_read_hangs_and_fails_comes_all_the_same(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes(shards.video("train", 1).data)
    calls = failing(monkeypatch, None, OSError(errno.ESTALE, "stale file handle"))
    assert bytes(shards.video("train", 1).data) == expected
    assert len(calls) == 3


def test_a_storage_that_does_not_answer_is_no_fault_of_the_video(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, None, None, None)
    with pytest.raises(DataError, match=r"cannot be read \(no answer within 0.1 s, 3 times, at 1.mp4\)") as caught:
        shards.video("train", 1)
    assert not isinstance(caught.value, VideoError)


def test_a_bad_block_is_one(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_set, "_readers", lambda: READERS)
    first, whole = shards._place("train", 0, 0)[1], LocalFile.read_into

    def read_into(file: LocalFile, target, offset, wanted) -> None:  # type: ignore[no-untyped-def]
        if offset == first:
            raise OSError(errno.EIO, "Input/output error")
        whole(file, target, offset, wanted)

    monkeypatch.setattr(LocalFile, "read_into", read_into)
    one, other = shards.videos("train", [(0, 0, [0]), (1, 0, [0])])
    assert isinstance(one, VideoError) and "Input/output error, at 0.mp4" in str(one)
    assert not isinstance(other, VideoError)
