"""Ingest in one process; on a real Ray it is in tests/integration/test_ingest.py."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mgray import display
from mgray.data import ingest as module
from mgray.data.decode.encode import encode_frames
from mgray.data.decode.ingest_video import ingest_video
from mgray.data.estimate import estimate
from mgray.data.ingest import ingest
from mgray.data.ingest_part import Part, SourceVideo, encode_part
from mgray.data.shards.manifest import SOURCE
from mgray.data.shards.shard_set import ShardSet
from mgray.data.storage import Folder
from mgray.display import IngestDisplay
from mgray.errors import DataError, SlowVideoError, UnreadVideoError, VideoError
from tests.support.videos import moving, write_tree


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray does, in this process."""

    def run(folder, parts, num_workers):
        for part in parts:
            yield from encode_part(folder, part)

    monkeypatch.setattr(module, "_run", run)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "videos", {"a": 3, "b": 3}, frames=4)


@pytest.mark.parametrize(
    ("error", "limits", "tried"),
    [
        (SlowVideoError, (60.0, 60.0), 1),
        (SlowVideoError, (60.0, 61.0), 2),
        (UnreadVideoError, (60.0, 60.0), 2),
        (VideoError, (60.0, 61.0), 1),
    ],
)
def test_what_may_be_whole_by_now_is_tried_again(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[VideoError], limits: tuple[float, float], tried: int
) -> None:  # fmt: skip
    tries = []

    def read(part: Part, video: SourceVideo):
        if video.path == "a/1.mp4":
            tries.append(part.limit_s)
            if len(tries) == 1:
                raise error("data.path", video.location, "is broken", "repair it")
        return ingest_video(part.source, video.location, part.levels)

    monkeypatch.setattr(Part, "read", read)
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match=r"1 of 6 videos are broken.*a/1.mp4 .is broken"):
        ingest(str(videos), out, levels=(32,), limit_s=limits[0])
    manifest = ingest(str(videos), out, levels=(32,), limit_s=limits[1], max_broken=0.5)
    assert len(tries) == tried and len(manifest.broken) == (tried == 1)


def test_passed_through_videos_that_were_moved_are_found_out(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_frames(str(videos / "b" / "old.avi"), moving(50), codec="mpeg4")
    ingest(str(videos), str(out), levels=SOURCE)
    ShardSet.open(str(out)).verify()
    assert ShardSet.open(str(out)).summary()["encoded_anew"] == 1
    moved = videos.rename(tmp_path / "moved")
    with pytest.raises(
        DataError, match=r"the video .*mp4, which was passed through, is not there any more; put it back"
    ):
        ShardSet.open(str(out)).verify()
    with pytest.raises(
        DataError, match=r"packet tables are of videos that were elsewhere .*; delete this folder first"
    ):
        ingest(str(moved), str(out), levels=SOURCE)
    ingest(str(moved), str(tmp_path / "anew"), levels=SOURCE)
    shards = ShardSet.open(str(tmp_path / "anew"))
    shards.verify()
    with (moved / "a" / "1.mp4").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"a/1.mp4, which was passed through, has \d+ bytes instead of \d+"):
        shards.verify()


def test_an_unfinished_table_of_moved_videos_is_not_gone_on_with(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_finish", stop)
        ingest(str(videos), out, levels=SOURCE)
    moved = videos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="holds shards of other videos or settings"):
        ingest(str(moved), out, levels=SOURCE)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_disk_that_is_full_at_the_end_is_one_line(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Folder.write

    def write(self: Folder, name: str, content: bytes):
        if name == "index.arrow":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, name, content)

    monkeypatch.setattr(Folder, "write", write)
    with pytest.raises(DataError, match=r"^out = .*: cannot be written \(.*No space left on device\); "):
        ingest(str(videos), str(tmp_path / "out"), levels=(32,))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"val_fraction": 20.0}, "val_fraction"),
        ({"val_fraction": -1.0}, "val_fraction"),
        ({"val_fraction": float("nan")}, "val_fraction"),
        ({"limit_s": 0.0}, "limit_s"),
        ({"limit_s": float("inf")}, "limit_s"),
    ],
)
def test_settings_are_checked(tmp_path: Path, settings: dict[str, float], field: str) -> None:
    with pytest.raises(DataError, match=f"^{field} = "):
        ingest("videos", str(tmp_path), **settings)
    with pytest.raises(DataError, match=f"^{field} = "):
        estimate("videos", (32,), **settings)


def test_progress_is_told_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: now))
    text = io.StringIO()
    with IngestDisplay(Console(file=text)) as shown:
        for done in range(0, 1001, 10):
            shown.update(done, 2000, done // 100)
            now += 2.0
    assert text.getvalue().splitlines()[0].startswith("ingest: 150 of 2,000 videos, 1 of them broken, 0:06:10 left")
    assert 3 <= len(text.getvalue().splitlines()) <= 10
