"""Shards on a real S3 server: the same bytes as locally, few requests, several at once, errors in one line."""

from __future__ import annotations

import functools
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from moto import settings

from mgray.data.annotations import read_annotations
from mgray.data.estimate import estimate
from mgray.data.ingest import SOURCE, ingest
from mgray.data.shards.shard_set import _READ_AHEAD, ShardSet
from mgray.data.source import TrainSource
from mgray.data.storage import Folder
from mgray.errors import DataError
from mgray.plan import Plan, PlanSpec
from tests.support.s3 import KEY, SECRET, S3Server, s3_server
from tests.support.shards import write_shards
from tests.support.videos import write_tree

SPEC = PlanSpec(
    frames=4, crop=16, batch=16, stride=2, jitter_min=18, jitter_max=24, epochs=8, lr_steps=(0, 6), lr_factors=(1.0, 0.1),
    long_cycle="run", short_cycle=False, bn_group=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("remote"), train=20, val=4, frames=30, levels=(32, 16))


@pytest.fixture
def remote(s3: S3Server, local: ShardSet, request: pytest.FixtureRequest) -> ShardSet:
    """A copy of its own for each test: nothing of it has been read before."""
    prefix = request.node.name
    s3.upload(Path(local.root), prefix)
    return ShardSet.open(s3.address(f"bucket/{prefix}"))


def source(shards: ShardSet) -> TrainSource:
    return TrainSource(shards, Plan.compile(SPEC, shards.num_samples("train")), 0, fps=0.0, flip=True)


def test_a_remote_copy_is_the_same(s3: S3Server, local: ShardSet, remote: ShardSet) -> None:
    remote.verify()
    theirs, ours = local.summary(), remote.summary()
    assert ours.pop("path") == remote.root and theirs.pop("path") == local.root and ours == theirs
    for split, count in (("train", 20), ("val", 4)):
        wanted = [(sample, level, range(30)) for sample in range(count) for level in (0, 1)]
        for one, other in zip(local.videos(split, wanted), remote.videos(split, wanted), strict=True):
            assert bytes(one.data) == bytes(other.data) and one.source == other.source
            assert np.array_equal(one.pts, other.pts) and np.array_equal(one.offsets, other.offsets)
    again = pickle.loads(pickle.dumps(remote))
    for index in (0, 1, source(local).plan.num_steps - 1):
        one, other = source(local).block(index, 0, 2), source(again).block(index, 0, 2)
        assert one is not None and other is not None
        assert np.array_equal(one.clips_NTHWC, other.clips_NTHWC) and np.array_equal(one.labels_N, other.labels_N)


def test_it_opens_with_one_listing_a_level(s3: S3Server, remote: ShardSet) -> None:
    with s3.record() as requests:
        ShardSet.open(remote.root)
    assert len(requests) == 4, requests  # size and content of the manifest, two levels


def test_a_clip_of_a_fifth_reads_a_fifth(s3: S3Server, tmp_path: Path) -> None:
    write_shards(tmp_path, train=2, val=1, frames=250, levels=(240,), size=(320, 240))
    s3.upload(tmp_path / "set", "long")
    shards = ShardSet.open(s3.address("bucket/long"))
    size = shards.video("train", 0).data.nbytes
    whole = shards.video("train", 1)
    shares = []
    for first, stride in ((0, 1), (100, 1), (100, 2), (200, 4)):
        frames = range(first, first + 50, stride)
        with s3.record() as requests:
            video = shards.video("train", 1, frames=frames)
        for packet in whole.needed(frames):
            assert bytes(video.packet(packet)) == bytes(whole.packet(packet))
        assert len(requests) <= 4, requests
        shares.append(sum(request.num_bytes for request in requests) / size)
    print("share of the bytes read:", [round(share, 2) for share in shares], "of", size)
    assert max(shares) < 0.5


def test_clips_of_a_block_are_read_at_once(s3: S3Server, remote: ShardSet, local: ShardSet) -> None:
    latency = 0.1
    assert len(source(remote).clips(0, 0, 1)) >= 16
    with s3.record(latency) as requests:
        started = time.monotonic()
        block = source(remote).block(0, 0, 1)
        took = time.monotonic() - started
    expected = source(local).block(0, 0, 1)
    assert block is not None and expected is not None
    assert np.array_equal(block.clips_NTHWC, expected.clips_NTHWC)
    print(
        f"{len(block.labels_N)} clips in {took:.2f} s, {len(requests)} requests of {latency} s, {s3.most_at_once} at once"
    )
    assert s3.most_at_once >= 8
    assert took < 0.4 * len(requests) * latency


def test_few_videos_are_read_before_they_are_used(s3: S3Server, remote: ShardSet) -> None:
    wanted = [(sample % 20, 0, [0]) for sample in range(10 * _READ_AHEAD)]
    with s3.record() as requests:
        videos = remote.videos("train", wanted)
        next(videos)
        time.sleep(0.5)
        ahead = len(requests)
        assert sum(1 for _ in videos) == len(wanted) - 1
    assert _READ_AHEAD <= ahead <= _READ_AHEAD + 5 and len(requests) >= len(wanted)


def test_it_writes_whole_objects_only(s3: S3Server) -> None:
    folder = Folder.of(s3.address("bucket/written/"))
    content = bytes(range(256)) * (25 << 10)  # two parts
    assert folder.write("a/b.bin", content).num_bytes == len(content)
    assert folder.read("a/b.bin").to_pybytes() == content
    assert s3.names("written") == ["written/a/b.bin"] and folder.names() == ["a"]
    folder.write("a/b.bin", b"short")
    assert folder.read("a/b.bin").to_pybytes() == b"short"
    s3.refused = "PUT"
    try:
        with pytest.raises(OSError):
            folder.write("a/c.bin", content)
    finally:
        s3.refused = ""
    assert s3.names("written") == ["written/a/b.bin"]
    folder.delete("a")
    assert not folder.exists("a") and folder.names() == []


def refused(words: str, call: Callable[[], object], within_s: float = 5.0) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        call()
    message = str(caught.value)
    print(f"{time.monotonic() - started:.1f} s: {message}")
    assert message.startswith("data.path = 's3://") and "\n" not in message and ";" in message
    assert time.monotonic() - started < within_s


def test_what_is_not_there_is_named(s3: S3Server, remote: ShardSet) -> None:
    name = test_what_is_not_there_is_named.__name__
    refused("its bucket nowhere does not exist", lambda: ShardSet.open(s3.address("nowhere/data")))
    refused("is no folder; check the path", lambda: ShardSet.open(s3.address("bucket/nowhere")))
    s3.client.delete_object(Bucket="bucket", Key=f"{name}/16/00000.arrow")
    refused("its file 16/00000.arrow is missing; copy", lambda: ShardSet.open(remote.root))
    refused("its file 16/00000.arrow is missing; copy", lambda: remote.video("train", 0, level=1, frames=[0]))
    refused("its file 16/00000.arrow is missing; copy", remote.verify)
    s3.client.put_object(Bucket="bucket", Key=f"{name}/32/00000.arrow", Body=b"short")
    refused(r"32/00000.arrow is damaged \(it has 5 bytes", lambda: remote.video("train", 0, frames=[0]))
    s3.client.put_object(Bucket="bucket", Key=f"{name}/manifest.json", Body=b"{")
    refused("is no JSON", lambda: ShardSet.open(remote.root))
    s3.client.delete_object(Bucket="bucket", Key=f"{name}/manifest.json")
    refused("holds no manifest.json; make shards of your videos", lambda: ShardSet.open(remote.root))


def test_wrong_credentials_are_refused(s3: S3Server, remote: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    words = "cannot be read .*ACCESS_DENIED.* credentials"
    refused(words, lambda: ShardSet.open(s3.address("bucket/data")))
    refused(words, lambda: remote.video("train", 0, frames=[0]))


@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_an_endpoint_that_does_not_answer_fails_soon(server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if server == "refuses":
            listener.close()
        address = f"s3://{KEY}:{SECRET}@bucket/data?scheme=http&endpoint_override=127.0.0.1:{port}"
        refused(
            "cannot be read .*NETWORK_CONNECTION.*; check the address, the network",
            functools.partial(ShardSet.open, address),
            20,
        )


@pytest.mark.usefixtures("ray_instance")
def test_videos_of_a_bucket_become_shards_of_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    write_tree(tmp_path / "videos", {"jump": 4, "run": 4})
    expected = ingest(str(tmp_path / "videos"), str(tmp_path / "shards"), levels=(32, 16), num_workers=1)
    s3.upload(tmp_path / "videos", "videos")
    source, out = s3.address("bucket/videos"), s3.address("bucket/made")
    manifest = ingest(source, out, levels=(32, 16), num_workers=1)
    assert manifest.source == "s3://bucket/videos" and manifest.content_digest == expected.content_digest
    assert manifest.levels == expected.levels and manifest.counts == expected.counts  # checksums are equal
    ShardSet.open(out).verify()
    names = {name for name in s3.names("made/") if not name.endswith("/")}
    files = [path for path in (tmp_path / "shards").rglob("*") if path.is_file()]
    assert names == {f"made/{path.relative_to(tmp_path / 'shards').as_posix()}" for path in files}
    with s3.record() as requests:
        assert ingest(source, out, levels=(32, 16)) == manifest  # nothing is written again
    assert not {"PUT", "POST"} & {request.method for request in requests}
    assert estimate(source, (32, 16)).tried == 8
    refused("cannot be passed through", lambda: ingest(source, out, levels=SOURCE))
    refused("does not exist", lambda: read_annotations(s3.address("bucket/none")))
    with pytest.raises(DataError, match=r"out = .*lies within the videos' folder"):
        ingest(source, s3.address("bucket/videos/shards"))
    with pytest.raises(DataError, match=r"out = .*cannot be written.*NO_SUCH_BUCKET"):
        ingest(source, s3.address("nowhere/made"))


def test_lists_of_a_bucket_are_read(s3: S3Server, tmp_path: Path) -> None:
    write_tree(tmp_path / "clips", {"jump": 2, "run": 2}, frames=2)
    rows = [
        f"clips/{label}/{clip}.mp4,{label},{split}"
        for label in ("jump", "run")
        for clip, split in ((0, "train"), (1, "val"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    s3.upload(tmp_path, "listed")
    remote = read_annotations(s3.address("bucket/listed/list.csv"))
    assert remote.samples == read_annotations(str(tmp_path / "list.csv")).samples
    assert remote.root == "s3://bucket/listed" and all(remote.remote_bytes.values()) and len(remote.remote_bytes) == 4
    s3.client.delete_object(Bucket="bucket", Key="listed/clips/run/0.mp4")
    refused(
        "lists 1 file that cannot be found under s3://bucket/listed: clips/run/0.mp4",
        lambda: read_annotations(s3.address("bucket/listed/list.csv")),
    )


def test_published_lists_here_or_there_name_videos_of_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    write_tree(tmp_path / "ucf" / "UCF-101", {"Jump": 2, "Run": 2}, frames=2)
    lists = tmp_path / "ucf" / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Jump\n2 Run\n")
    (lists / "trainlist01.txt").write_text("Jump/0.avi 1\nRun/0.avi 2\n")
    (lists / "testlist01.txt").write_text("Jump/1.avi\nRun/1.avi\n")
    s3.upload(tmp_path / "ucf", "published")
    there = read_annotations(s3.address("bucket/published"))
    assert there.samples == read_annotations(str(tmp_path / "ucf")).samples and there.root == "s3://bucket/published"
    assert there.classes == ("Jump", "Run") and all(there.remote_bytes.values())
    here = read_annotations(str(lists), videos=s3.address("bucket/published/UCF-101"))
    assert [sample.path for sample in here.samples] == ["Jump/0.mp4", "Run/0.mp4", "Jump/1.mp4", "Run/1.mp4"]
    assert here.root == "s3://bucket/published/UCF-101" and len(here.remote_bytes) == 4
    with pytest.raises(DataError, match=r"data\.videos = .*is no folder"):
        read_annotations(str(lists), videos=s3.address("bucket/none"))


def test_the_command_line_reads_it(s3: S3Server, remote: ShardSet) -> None:
    prefix = test_the_command_line_reads_it.__name__
    environment = {
        "PATH": "/usr/bin:/bin", "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": s3.endpoint,
    }  # fmt: skip

    def run(action: str, path: str) -> tuple[int, str]:
        command = [str(Path(sys.executable).with_name("mgray")), "shards", action, path]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        return done.returncode, done.stdout + done.stderr

    code, shown = run("info", f"s3://bucket/{prefix}")
    assert code == 0 and "20" in shown, shown
    assert run("verify", f"s3://bucket/{prefix}")[0] == 0
    code, shown = run("info", "s3://bucket/nothing")
    assert code and len(shown.strip().splitlines()) == 1 and "data.path = 's3://bucket/nothing': is no folder" in shown
