"""The set of shards of a dataset."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgray.data.clip import VideoInfo
from mgray.data.shards.index import INDEX
from mgray.data.shards.manifest import MANIFEST, VERSION
from mgray.data.shards.shard_set import ShardSet
from mgray.data.shards.writer import shard_name
from mgray.data.storage import Folder
from mgray.errors import DataError
from tests.unit.data.shards.support import SIDE, same, write_set


def test_every_video_comes_back(root, videos):
    shards = ShardSet.open(str(root))
    assert shards.classes == ("jump", "run")
    assert (shards.num_samples("train"), shards.num_samples("val")) == (4, 2)
    for number, video in enumerate(videos):
        split, sample = ("train", number) if number < 4 else ("val", number - 4)
        assert same(shards.video(split, sample), video)
        assert shards.info(split, sample) == video.source
        assert shards.label(split, sample) == number % 2
        assert shards.path(split, sample) == f"a/{number}.mp4"
        assert shards.group(split, sample) == f"g{number}"
    assert shards.labels("val").tolist() == [0, 1]
    assert isinstance(shards.info("train", 0).width, int) and isinstance(shards.label("train", 0), int)
    with pytest.raises(IndexError):
        shards.info("val", 2)
    with pytest.raises(IndexError):
        shards.video("train", -1)
    shards.verify()


def test_a_remote_file_system_gives_the_same(root, videos):
    shards = ShardSet.open(root.as_uri().replace("file://", "file:///", 1).replace("////", "///"))
    assert same(shards.video("val", 1), videos[5])


def test_range_requests_give_the_same(root, videos, monkeypatch):
    monkeypatch.setattr(Folder, "is_local", property(lambda folder: False))
    shards = ShardSet.open(str(root))
    assert same(shards.video("val", 1), videos[5])
    frames = shards.video("val", 1, frames=[3])
    assert np.array_equal(frames.pts, videos[5].pts) and bytes(frames.packet(0)) == bytes(videos[5].packet(0))


def test_it_pickles_as_its_path(root, videos):
    shards = ShardSet.open(str(root))
    data = pickle.dumps(shards)
    assert len(data) < 300 + len(str(root))
    again = pickle.loads(data)
    assert again is pickle.loads(data)
    assert again.manifest == shards.manifest and same(again.video("train", 2), videos[2])
    code = f"import pickle; s = pickle.loads({data!r}); print(s.info('val', 1).num_frames, s.path('val', 1))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["11", "a/5.mp4"]


def test_a_set_that_changed_under_a_run_is_refused(root, videos):
    data = pickle.dumps(ShardSet.open(str(root)))
    text = (root / MANIFEST).read_text()
    (root / MANIFEST).write_text(text.replace('"jump"', '"hop"'))
    with pytest.raises(DataError, match="has changed"):
        pickle.loads(data)


def test_the_digest_is_of_the_content(tmp_path, videos, root):
    first = ShardSet.open(str(root)).digest()
    write_set(tmp_path / "other", videos, shards=3)
    assert ShardSet.open(str(tmp_path / "other")).digest() == first
    write_set(tmp_path / "changed", [*videos[:3], videos[4], videos[3], videos[5]])
    assert ShardSet.open(str(tmp_path / "changed")).digest() != first


def check_refused(root: Path, words: str, verify: bool = False) -> None:
    with pytest.raises(DataError, match=words) as caught:
        shards = ShardSet.open(str(root))
        if verify:
            shards.verify()
    message = str(caught.value)
    assert str(root) in message and "\n" not in message and message.startswith("data.path = ")


def test_what_is_no_set_is_refused(tmp_path, root):
    check_refused(tmp_path / "nowhere", "is no folder; check the path")
    (tmp_path / "empty").mkdir()
    check_refused(tmp_path / "empty", "holds no manifest.json; make shards")
    tree = json.loads((root / MANIFEST).read_text())
    for change, words in (
        ({"version": 1}, f"have version 1, this code reads {VERSION} and 3; ingest"),
        ({"format": "else"}, "does not describe mgray shards"),
        ({"novel": 1}, "lacks or misnames a field"),
    ):
        (root / MANIFEST).write_text(json.dumps(tree | change))
        check_refused(root, words)
    (root / MANIFEST).write_text("{")
    check_refused(root, "is no JSON")
    with pytest.raises(DataError, match="cannot be reached"):
        ShardSet.open("nonsense://host/data")


def test_missing_and_damaged_files_are_named(root, videos):
    shard = root / shard_name(str(SIDE), 1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    check_refused(root, r"256/00001.arrow is damaged \(it has")
    shard.unlink()
    check_refused(root, r"256/00001.arrow is missing; copy")
    middle = len(content) // 2
    shard.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    check_refused(root, r"256/00001.arrow is damaged \(its checksum differs\)", verify=True)
    write_set(root, videos)
    (root / INDEX).write_bytes(bytes(len((root / INDEX).read_bytes())))
    with pytest.raises(DataError, match=r"index.arrow is damaged"):
        ShardSet.open(str(root)).info("train", 0)


def test_a_shard_of_noise_is_refused_when_read(root):
    shard = root / shard_name(str(SIDE), 0)
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"256/00000.arrow is damaged"):
        ShardSet.open(str(root)).video("train", 0)


def test_an_info_is_what_sampling_needs(root):
    assert ShardSet.open(str(root)).info("train", 1) == VideoInfo(7, 34, 32, 25.0)
