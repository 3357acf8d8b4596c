"""The dataset that the tests of its parts read."""

from pathlib import Path

import pytest

from mgray.data.decode.encode import encode_frames
from mgray.data.decode.transcode import transcode
from mgray.data.shards.packets import StoredVideo
from tests.support.videos import moving
from tests.unit.data.shards.support import SIDE, write_set


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[StoredVideo]:
    folder = tmp_path_factory.mktemp("source")
    stored = []
    for number in range(6):
        path = str(folder / f"{number}.mp4")
        encode_frames(path, moving(6 + number, 32 + 2 * number, 32, seed=number))
        video = transcode(path, (SIDE,)).levels[0]
        assert video is not None
        stored.append(video)
    return stored


@pytest.fixture
def root(tmp_path, videos) -> Path:
    write_set(tmp_path / "set", videos)
    return tmp_path / "set"
