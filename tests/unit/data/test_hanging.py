"""File systems that do not answer: manifests, indices, lists and sources are waited for only so long, and asked for again."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from mgray import cli
from mgray.data import storage
from mgray.data.annotations import read_annotations
from mgray.data.decode import ingest_video as ingest_module
from mgray.data.decode import source_file
from mgray.data.decode.encode import encode_frames
from mgray.data.decode.ingest_video import ingest_video
from mgray.data.files import sizes_of
from mgray.data.ingest import ingest
from mgray.data.shards import shard_set
from mgray.data.shards.manifest import MANIFEST, SOURCE
from mgray.data.shards.shard_set import ShardSet
from mgray.data.storage import Folder, Readers, fetched
from mgray.errors import DataError, SlowVideoError, UnreadVideoError, VideoError
from tests.support.shards import write_shards
from tests.support.videos import moving

LIMIT_S = 0.3
"""Much longer than a request takes here, on a busy machine too; nearly all the time of these tests is spent waiting for it."""


class Hanging(pafs.FSSpecHandler):  # type: ignore[misc]
    """This machine's files behind a file system whose next `hangs` calls do not answer before it is released."""

    def __init__(self, hangs: int = 0) -> None:
        super().__init__(LocalFileSystem())
        self.hangs, self.asked, self.released = hangs, 0, threading.Event()

    def _wait(self) -> None:
        self.asked += 1
        if self.asked <= self.hangs:
            self.released.wait(20)

    def get_file_info(self, paths: Any) -> Any:
        self._wait()
        return super().get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        self._wait()
        return super().get_file_info_selector(selector)

    def open_input_file(self, path: str) -> Any:
        self._wait()
        return super().open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._wait()
        return super().open_output_stream(path, metadata)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = Readers(2, limit_s=LIMIT_S, attempts=3, backoff_s=0.01)
    monkeypatch.setattr(storage, "waiting_readers", lambda: readers)


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """What addresses that begin with fake:// lead to."""
    found = Hanging()
    monkeypatch.setattr(storage, "_file_system", lambda address, attempts: (pafs.PyFileSystem(found), address[7:]))
    yield found
    found.released.set()


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A name that hangs whoever opens it to read."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


@pytest.mark.parametrize("hangs", [0, 1, 2])
def test_what_answers_at_the_third_attempt_is_read(handler: Hanging, tmp_path: Path, hangs: int) -> None:
    write_shards(tmp_path, train=2, val=1)
    folder = Folder.of(f"fake://{tmp_path}/set")
    for ask in (
        lambda: folder.exists(MANIFEST),
        folder.names,
        lambda: folder.sizes("32"),
        lambda: folder.read(MANIFEST),
    ):
        handler.asked, handler.hangs = 0, hangs
        assert ask()
        assert handler.asked == hangs + 1
    handler.asked, handler.hangs = 0, hangs
    assert ShardSet.open(f"fake://{tmp_path}/set").num_samples("train") == 2


def test_a_manifest_that_never_comes_is_one_line(handler: Hanging) -> None:
    handler.hangs = 99
    with pytest.raises(
        DataError, match=r"cannot be read .no answer within 0.3 s, 3 times.; check the address"
    ) as caught:
        ShardSet.open("fake:///data/shards")
    assert str(caught.value).startswith("data.path = 'fake:///data/shards': ") and "\n" not in str(caught.value)


def test_an_index_that_never_comes_is_one_line(handler: Hanging, tmp_path: Path) -> None:
    write_shards(tmp_path, train=2, val=1)
    shards = ShardSet.open(f"fake://{tmp_path}/set")
    handler.hangs = 99
    with pytest.raises(DataError, match=r"no answer within 0.3 s, 3 times"):
        shards.info("train", 0)


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_a_file_comes_whole_in_pieces_of_which_some_hang(
    handler: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(storage, "_PIECE_BYTES", 1000)
    content = hashlib.shake_128(b"content").digest(size)
    (tmp_path / "video.mp4").write_bytes(content)
    handler.hangs = 2
    with fetched("fake:///", f"fake://{tmp_path}/video.mp4") as copy:
        assert Path(copy).read_bytes() == content
    for folder in (Folder.of(f"fake://{tmp_path}"), Folder.of(str(tmp_path))):
        assert folder.read("video.mp4").to_pybytes() == content


def test_a_file_that_never_comes_or_is_not_there_is_an_error(handler: Hanging, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"content")
    with pytest.raises(FileNotFoundError):
        Folder.of(str(tmp_path)).read("none")
    handler.hangs = 99
    with pytest.raises(TimeoutError), fetched("fake:///", f"fake://{tmp_path}/video.mp4"):
        pass


@pytest.mark.parametrize("hangs", [0, 1, 2, 3])
def test_a_file_is_written_once_in_three_attempts_or_not_at_all(handler: Hanging, tmp_path: Path, hangs: int) -> None:
    folder = Folder.of(f"fake://{tmp_path}/set")
    handler.hangs = hangs
    content = hashlib.shake_128(b"content").digest(1000)
    if hangs == 3:
        with pytest.raises(TimeoutError, match=r"no answer within 0.30\d* s, 3 times"):
            folder.write("32/00000.arrow", content)
        return
    written = folder.write("32/00000.arrow", content)
    assert written.num_bytes == 1000 and written.sha256 == hashlib.sha256(content).hexdigest()
    assert [path.name for path in (tmp_path / "set" / "32").iterdir()] == ["00000.arrow"]
    assert (tmp_path / "set" / "32" / "00000.arrow").read_bytes() == content and handler.asked == hangs + 1


def test_a_folder_that_does_not_answer_ends_an_ingest_in_one_line(
    handler: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp4", "b.mp4"):
        encode_frames(str(tmp_path / name), moving(6, 32, 32))
    (tmp_path / "list.csv").write_text("a.mp4,x,train\nb.mp4,x,val\n")
    monkeypatch.setattr(handler, "get_file_info", super(Hanging, handler).get_file_info)
    monkeypatch.setattr(handler, "get_file_info_selector", super(Hanging, handler).get_file_info_selector)
    handler.hangs = 99
    with pytest.raises(DataError, match=r"^out = .*cannot be written .no answer within 0.30\d* s, 3 times") as caught:
        ingest(str(tmp_path / "list.csv"), f"fake://{tmp_path}/out")
    assert "\n" not in str(caught.value)


def test_a_bucket_of_videos_that_does_not_answer_is_one_line(handler: Hanging) -> None:
    handler.hangs = 99
    with pytest.raises(DataError, match=r"data.path = 'fake:///videos': cannot be read .no answer"):
        read_annotations("fake:///videos")


def test_a_shard_whose_opening_hangs_is_opened_again(
    handler: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, train=2, val=1)
    readers = Readers(4, limit_s=LIMIT_S, attempts=3, backoff_s=0.01)
    monkeypatch.setattr(shard_set, "_readers", lambda: readers)
    monkeypatch.setattr(storage, "_OPENING_S", 0.05)
    shards = ShardSet.open(f"fake://{tmp_path}/set")
    shards.info("train", 0)
    handler.asked, handler.hangs = 0, 1
    assert shards.video("train", 0).source.num_frames == 10
    assert shards.video("train", 1).source.num_frames == 11
    assert handler.asked == 2


def test_no_room_for_a_copy_is_not_the_address_s_fault(
    handler: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "video.mp4").write_bytes(b"content")
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 - `fetched` closes it
    monkeypatch.setattr(storage.tempfile, "NamedTemporaryFile", lambda **_: full)
    with (
        pytest.raises(DataError, match=r"^TMPDIR = .*cannot hold a copy of fake://.*video.mp4 .*No space left"),
        fetched("fake:///", f"fake://{tmp_path}/video.mp4"),
    ):
        pass


def test_a_local_manifest_that_hangs_is_one_line(pipe: Path) -> None:
    (pipe.parent / MANIFEST).symlink_to(pipe)
    with pytest.raises(DataError, match=r"no answer within 0.3 s, 3 times.; check the disk or file system") as caught:
        ShardSet.open(str(pipe.parent))
    assert "\n" not in str(caught.value)


def test_a_file_system_that_hangs_under_a_list_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()
    (tmp_path / "list.csv").write_text("a.mp4,x,train\nb.mp4,x,val\n")
    for name, hang in (("isfile", lambda path: path.endswith(".mp4")), ("isdir", lambda path: True)):
        with monkeypatch.context() as patch:
            whole = getattr(os.path, name)
            patch.setattr(os.path, name, lambda path, w=whole, h=hang: (h(path) and released.wait(20), w(path))[1])
            assert cli.main(["ingest", str(tmp_path / "list.csv"), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "no answer within 0.3 s, 3 times" in error and "list.csv" in error
    released.set()


def test_a_source_whose_file_system_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "READ_LIMIT_S", 0.6)
    encode_frames(str(tmp_path / "clip.mp4"), moving(6, 32, 32))
    released, whole = threading.Event(), os.stat
    for levels in (SOURCE, (16,)):
        with monkeypatch.context() as patch:
            patch.setattr(source_file.os, "stat", lambda path, **more: (released.wait(20), whole(path, **more))[1])
            with pytest.raises(TimeoutError, match=r"no answer within 0.6 s$"):
                ingest_video("", str(tmp_path / "clip.mp4"), levels, limit_s=0.1)
    released.set()
    assert ingest_video("", str(tmp_path / "clip.mp4"), (16,)).probe.codec == "h264"


def test_work_that_never_ends_is_the_videos_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg cannot be interrupted either; that it works tells it from a disk that does not answer."""
    monkeypatch.setattr(ingest_module, "_LOOK_S", 0.02)
    ended = threading.Event()

    def endless(path: str, **_: object) -> None:
        while not ended.is_set():
            pass

    for levels, name in ((SOURCE, "index_packets"), ((16,), "transcode")):
        with monkeypatch.context() as patch:
            patch.setattr(ingest_module, name, endless)
            with pytest.raises(SlowVideoError, match=r"takes more than 0.4 s to decode and store; mgray ingest with"):
                ingest_video("", str(tmp_path / "clip.mp4"), levels, limit_s=0.04)
    ended.set()


@pytest.mark.parametrize(("fails", "readable"), [(1, True), (2, True), (1, False)])
def test_a_disk_that_fails_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, readable: bool
) -> None:
    encode_frames(str(tmp_path / "clip.mp4"), moving(6, 32, 32))
    opens, whole = 0, source_file.av.open

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal opens
        opens += 1
        if opens <= fails:
            raise av.error.OSError(errno.EIO, "Input/output error")
        return whole(*arguments, **options)

    monkeypatch.setattr(source_file.av, "open", fail)
    monkeypatch.setattr(ingest_module, "_is_readable", lambda path: readable)
    if fails == 1 and readable:
        assert ingest_video("", str(tmp_path / "clip.mp4"), (16,)).probe.codec == "h264"
        return
    with pytest.raises(VideoError, match="Input/output error") as caught:
        ingest_video("", str(tmp_path / "clip.mp4"), (16,))
    assert isinstance(caught.value, UnreadVideoError) == (not readable) and opens == fails


def test_many_local_files_cost_no_request_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    whole = storage.answered
    monkeypatch.setattr("mgray.data.files.answered", lambda ask, **more: (asked.append(1), whole(ask, **more))[1])
    names = [f"{number}.mp4" for number in range(1000)]
    for name in names:
        (tmp_path / name).touch()
    assert sizes_of([str(tmp_path / name) for name in names]) == [0] * 1000
    assert len(asked) == 4
