"""Shards on a server of Google Cloud Storage: the same bytes and clips as locally, errors in one line."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest

from mgray.data.annotations import read_annotations
from mgray.data.ingest import ingest
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import TrainSource
from mgray.data.storage import Folder
from mgray.errors import DataError
from mgray.plan import Plan, PlanSpec
from tests.support.gcs import GcsServer, gcs_server
from tests.support.videos import write_tree

SPEC = PlanSpec(
    frames=4, crop=16, batch=4, stride=2, jitter_min=18, jitter_max=24, epochs=4, lr_steps=(0, 3), lr_factors=(1.0, 0.1),
    long_cycle="run", short_cycle=False, bn_group=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def gcs() -> Iterator[GcsServer]:
    with gcs_server() as server:
        yield server


def refused(words: str, call: Callable[[], object], within_s: float) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    assert time.monotonic() - started < within_s


def test_it_writes_and_reads_objects(gcs: GcsServer) -> None:
    folder = Folder.of(gcs.address("bucket/written/"))
    content = bytes(range(256)) * (70 << 10)  # more than one piece
    assert folder.write("a/b.bin", content).num_bytes == len(content)
    assert folder.read("a/b.bin").to_pybytes() == content
    assert gcs.names("written") == {"written/a/b.bin"} and folder.exists("a/b.bin")
    folder.write("a/b.bin", b"short")
    assert folder.read("a/b.bin").to_pybytes() == b"short" and folder.sizes("a") == {"a/b.bin": 5}
    folder.delete("a")
    assert not folder.exists("a/b.bin") and gcs.names("written") == set()


@pytest.mark.usefixtures("ray_instance")
def test_videos_of_a_bucket_become_shards_of_a_bucket_and_train_the_same(gcs: GcsServer, tmp_path: Path) -> None:
    write_tree(tmp_path / "videos", {"jump": 4, "run": 4})
    expected = ingest(str(tmp_path / "videos"), str(tmp_path / "shards"), levels=(32, 16), num_workers=1)
    pafs.copy_files(
        str(tmp_path / "videos"),
        "bucket/videos",
        source_filesystem=pafs.LocalFileSystem(),
        destination_filesystem=gcs.fs,
    )
    source, out = gcs.address("bucket/videos"), gcs.address("bucket/made")
    manifest = ingest(source, out, levels=(32, 16), num_workers=1)
    assert manifest.source == "gs://bucket/videos" and manifest.content_digest == expected.content_digest
    assert manifest.levels == expected.levels and manifest.counts == expected.counts  # checksums are equal
    files = [path for path in (tmp_path / "shards").rglob("*") if path.is_file()]
    assert gcs.names("made") == {f"made/{path.relative_to(tmp_path / 'shards').as_posix()}" for path in files}
    assert ingest(source, out, levels=(32, 16)) == manifest
    there, here = ShardSet.open(out), ShardSet.open(str(tmp_path / "shards"))
    there.verify()
    plan = Plan.compile(SPEC, here.num_samples("train"))
    for index in range(plan.num_steps):
        one, other = (TrainSource(shards, plan, 0, fps=0.0, flip=True).block(index, 0, 2) for shards in (there, here))
        assert one is not None and other is not None
        assert np.array_equal(one.clips_NTHWC, other.clips_NTHWC) and np.array_equal(one.labels_N, other.labels_N)


def test_what_is_not_there_is_named(gcs: GcsServer) -> None:
    refused("its bucket nowhere does not exist", lambda: ShardSet.open(gcs.address("nowhere/data")), 15)
    refused("is no folder; check the path", lambda: ShardSet.open(gcs.address("bucket/nowhere")), 15)
    refused("does not exist", lambda: read_annotations(gcs.address("bucket/none")), 15)


def test_an_endpoint_that_refuses_fails_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"gs://anonymous@bucket/data?scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=1"
    refused("cannot be read .*; check the address, the network", lambda: ShardSet.open(address), 30)
