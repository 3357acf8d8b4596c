"""Small datasets for tests, made without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mgray.data.decode import CODEC, encode_frames, transcode
from mgray.data.shard import (
    MANIFEST,
    Folder,
    IndexRow,
    Level,
    Manifest,
    ShardSet,
    content_digest,
    shard_name,
    write_index,
    write_shard,
)
from tests.support.videos import moving

SIDE = 32


def write_shards(
    root: Path, *, train: int = 10, val: int = 5, classes: int = 2, frames: int = 10, damaged: int = -1
) -> ShardSet:
    """Videos of 40x32 pixels in one shard; the packets of training video `damaged` are noise."""
    folder = Folder.of(str(root / "set"))
    videos = []
    for number in range(train + val):
        path = root / f"{number}.mp4"
        encode_frames(str(path), moving(frames + number % 3, 40, 32, seed=number))
        videos.append(transcode(str(path), SIDE))
    if damaged >= 0:
        noise = bytes(byte ^ 0x5A for byte in videos[damaged].data)
        videos[damaged] = dataclasses.replace(videos[damaged], data=memoryview(noise))
    file, extents = write_shard(folder, shard_name(SIDE, 0), videos)
    rows = [
        IndexRow(
            split="train" if number < train else "val", path=f"{number}.mp4", label=number % classes, group=str(number),
            num_frames=video.source.num_frames, width=video.source.width, height=video.source.height,
            fps=video.source.fps, shard=0, offset=extent.offset, length=extent.length,
        )
        for number, (video, extent) in enumerate(zip(videos, extents, strict=True))
    ]  # fmt: skip
    names = tuple(f"class{number}" for number in range(classes))
    manifest = Manifest(
        version=1, source="videos", source_digest="d", classes=names, counts={"train": train, "val": val},
        levels=(Level(short_side=SIDE, shards=(file,)),), codec=CODEC, index=write_index(folder, rows, SIDE),
        content_digest=content_digest(names, rows, [SIDE], CODEC),
    )  # fmt: skip
    folder.write(MANIFEST, manifest.to_json().encode())
    return ShardSet.open(str(root / "set"))
