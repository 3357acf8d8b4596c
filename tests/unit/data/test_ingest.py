"""Ingest in one process; on a real Ray it is in tests/integration/test_ingest.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgray.data import ingest as module
from mgray.data.decode.ingest_video import ingest_video
from mgray.data.ingest import ingest
from mgray.data.ingest_part import Part, SourceVideo, encode_part
from mgray.errors import DataError, SlowVideoError, UnreadVideoError, VideoError
from tests.support.videos import write_tree


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
