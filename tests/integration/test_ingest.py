"""Ingest on a real Ray: shards, resumption, broken videos, refusals."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from mgray.data import ingest as module
from mgray.data.annotations import read_annotations
from mgray.data.decode.transcode import transcode
from mgray.data.ingest import IngestProgress, ingest
from mgray.data.ingest_part import Part
from mgray.data.shards.manifest import MANIFEST
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import DataError
from tests.support.videos import write_tree

pytestmark = pytest.mark.usefixtures("ray_instance")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("videos"), {"jump": 9, "run": 10, "walk": 5}, frames=10)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in root.rglob("*") if p.is_file()}


def no_jobs(*_: object) -> None:
    raise AssertionError("nothing was to be encoded")


def test_a_folder_becomes_shards(videos, tmp_path, capfd):
    seen: list[IngestProgress] = []
    out = tmp_path / "shards"
    manifest = ingest(str(videos), str(out), on_progress=seen.append)
    assert capfd.readouterr() == ("", "")
    shards = ShardSet.open(str(out))
    assert shards.manifest == manifest and manifest.broken == ()
    assert shards.classes == ("jump", "run", "walk")
    annotations = read_annotations(str(videos))
    assert sum(manifest.counts.values()) == len(annotations.samples) == 24
    shards.verify()
    for split in ("train", "val"):
        expected = [sample for sample in annotations.samples if sample.split == split]
        assert [shards.path(split, i) for i in range(shards.num_samples(split))] == [s.path for s in expected]
        assert shards.labels(split).tolist() == [s.label for s in expected]
        for index in (0, len(expected) - 1):
            direct, stored = (
                transcode(annotations.locate(expected[index]), (256,)).levels[0],
                shards.video(split, index),
            )
            assert bytes(direct.data) == bytes(stored.data) and np.array_equal(direct.pts, stored.pts)
            assert shards.info(split, index) == direct.source == stored.source
    assert seen[0] == IngestProgress(done=0, total=24, broken=0) and seen[-1].done == 24
    assert [p.done for p in seen] == sorted(p.done for p in seen) and len(seen) > 2
    assert not (out / ".ingest").exists() and not list(out.rglob("*.tmp"))


def test_a_second_call_does_nothing(videos, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    first = ingest(str(videos), str(out))
    before = snapshot(out)
    monkeypatch.setattr(module, "_run", no_jobs)
    assert ingest(str(videos), str(out)) == first
    assert snapshot(out) == before


def test_it_goes_on_where_it_was_cut_off(videos, tmp_path):
    whole = ingest(str(videos), str(tmp_path / "whole"), videos_per_shard=4)

    class CutOff(Exception):
        pass

    def stop(progress: IngestProgress) -> None:
        if progress.done >= 8:
            raise CutOff

    out = tmp_path / "shards"
    with pytest.raises(CutOff):
        ingest(str(videos), str(out), videos_per_shard=4, on_progress=stop)
    assert not (out / MANIFEST).exists()
    with pytest.raises(DataError, match="holds no manifest"):
        ShardSet.open(str(out))
    kept = {name: at for name, at in snapshot(out).items() if name.endswith(".json") and "job" not in name}
    assert kept
    shards_kept = {f"256/{Path(name).stem}.arrow" for name in kept}
    before = snapshot(out)
    seen: list[IngestProgress] = []
    manifest = ingest(str(videos), str(out), videos_per_shard=4, on_progress=seen.append)
    assert seen[0].done >= 8
    after = snapshot(out)
    assert all(after[name] == before[name] for name in shards_kept)
    assert manifest == whole  # the same bytes, checksums included


def test_a_damaged_part_is_made_again(videos, tmp_path):
    out = tmp_path / "shards"

    def stop(progress: IngestProgress) -> None:
        if progress.done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(str(videos), str(out), on_progress=stop)
    parts = sorted((out / ".ingest").glob("0*.json"))
    assert len(parts) == 3
    (out / "256" / "00001.arrow").write_bytes(b"half")
    parts[2].write_text(parts[2].read_text()[:40])
    seen: list[IngestProgress] = []
    ingest(str(videos), str(out), on_progress=seen.append)
    assert seen[0].done == 8 and seen[-1].done == 24
    ShardSet.open(str(out)).verify()


def test_other_videos_or_settings_in_the_same_folder_are_refused(videos, tmp_path):
    out = str(tmp_path / "shards")
    ingest(str(videos), out)
    changed = tmp_path / "changed"
    shutil.copytree(videos, changed)
    copied = ingest(str(changed), out)
    assert copied.source == str(videos)  # the same videos elsewhere are the same videos
    for source, settings in ((str(videos), {"levels": (128,)}), (str(videos), {"val_fraction": 0.5})):
        with pytest.raises(DataError, match="holds shards of other videos or settings; give another folder"):
            ingest(source, out, **settings)
    (changed / "run" / "0.mp4").unlink()
    with pytest.raises(DataError, match="other videos or settings"):
        ingest(str(changed), out)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    with pytest.raises(DataError, match="is not empty and holds no shards"):
        ingest(str(videos), str(foreign))
    with pytest.raises(DataError, match="lies within the videos' folder"):
        ingest(str(videos), str(videos / "shards"))


def test_broken_videos_are_listed_and_limited(videos, tmp_path):
    source = tmp_path / "videos"
    shutil.copytree(videos, source)
    (source / "run" / "3.mp4").write_bytes(b"")
    (source / "jump" / "4.mp4").write_bytes(b"noise" * 100)
    out = tmp_path / "shards"
    with pytest.raises(DataError) as caught:
        ingest(str(source), str(out))
    message = str(caught.value)
    assert "of 24 videos are broken, more than max_broken = 0.01" in message and "\n" not in message
    assert "run/3.mp4 (is empty)" in message or "jump/4.mp4 (is no video" in message
    manifest = ingest(str(source), str(out), max_broken=0.1)
    assert sorted(item.path for item in manifest.broken) == ["jump/4.mp4", "run/3.mp4"]
    assert sum(manifest.counts.values()) == 22
    shards = ShardSet.open(str(out))
    paths = [shards.path(split, i) for split in ("train", "val") for i in range(shards.num_samples(split))]
    assert len(paths) == 22 and not {"jump/4.mp4", "run/3.mp4"} & set(paths)
    for split in ("train", "val"):
        for index in range(shards.num_samples(split)):
            assert shards.video(split, index).source.num_frames == 10


@pytest.mark.slow  # the processes that die are started again
def test_a_video_that_crashes_its_decoder_is_left_out(videos, tmp_path, monkeypatch):
    whole = module.encode_part

    def encode_part(folder, part, call):
        read = Part.read

        def crash(part, video):
            if video.path == "run/3.mp4":
                os.kill(os.getpid(), signal.SIGSEGV)
            return read(part, video)

        Part.read = crash
        try:
            yield from whole(folder, part, call)
        finally:
            Part.read = read

    monkeypatch.setattr(module, "encode_part", encode_part)
    out = str(tmp_path / "shards")
    with pytest.raises(DataError, match=r"1 of 24 videos are broken.*run/3.mp4 .ended 3 processes that decoded it"):
        ingest(str(videos), out)
    assert [item.path for item in ingest(str(videos), out, max_broken=0.1).broken] == ["run/3.mp4"]


def test_a_repaired_video_is_read_again_before_the_end(videos, tmp_path):
    source = tmp_path / "videos"
    shutil.copytree(videos, source)
    good = (source / "run" / "3.mp4").read_bytes()
    (source / "run" / "3.mp4").write_bytes(b"")
    out = tmp_path / "shards"
    with pytest.raises(DataError, match="are broken"):
        ingest(str(source), str(out))
    (source / "run" / "3.mp4").write_bytes(good)
    assert ingest(str(source), str(out)).broken == ()


def test_the_level_reduces_large_videos(videos, tmp_path):
    out = str(tmp_path / "small")
    manifest = ingest(str(videos), out, levels=(16,), num_workers=1)
    shards = ShardSet.open(out)
    video = shards.video("train", 0)
    assert (video.width, video.height) == (24, 16) and shards.info("train", 0).height == 32
    assert manifest.levels[0].short_side == 16 and (Path(out) / "16").is_dir()


def test_a_folder_that_cannot_be_written_is_named(videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        ingest(str(videos), str(tmp_path / "file" / "shards"))


def test_a_shard_that_cannot_be_written_is_an_error_in_one_line(videos, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    (out / ".ingest").mkdir()

    def block(progress: IngestProgress) -> None:
        (out / "256").touch(exist_ok=True)  # a file where the level's folder is due

    with pytest.raises(DataError, match="cannot be written") as caught:
        ingest(str(videos), str(out), on_progress=block)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"levels": (0, 8)}, "levels"), ({"levels": (8, 16)}, "levels"), ({"videos_per_shard": 0}, "videos_per_shard"), ({"max_broken": 2}, "max_broken"), ({"num_workers": -1}, "num_workers")],
)  # fmt: skip
def test_settings_are_checked(videos, tmp_path, settings, field):
    with pytest.raises(DataError) as caught:
        ingest(str(videos), str(tmp_path), **settings)
    assert str(caught.value).startswith(f"{field} = ")


def test_the_manifest_is_plain_json(videos, tmp_path):
    ingest(str(videos), str(tmp_path / "shards"))
    tree = json.loads((tmp_path / "shards" / MANIFEST).read_text())
    assert tree["format"] == "mgray-shards" and tree["version"] == 2
    assert tree["counts"]["train"] + tree["counts"]["val"] == 24 and tree["codec"]["name"] == "libx264"
