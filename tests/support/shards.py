"""Small datasets for tests, made without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mgray.data.annotations import Action
from mgray.data.decode.encode import CODEC, encode_frames
from mgray.data.decode.ingest_video import ingest_video
from mgray.data.shards.index import IndexRow, content_digest, write_index
from mgray.data.shards.manifest import MANIFEST, MULTI_LABEL_VERSION, VERSION, Level, Manifest, level_name
from mgray.data.shards.shard_set import ShardSet
from mgray.data.shards.writer import shard_name, write_shard
from mgray.data.storage import Folder
from tests.support.videos import moving

SIDE = 32


def write_shards(
    root: Path,
    *,
    train: int = 10,
    val: int = 5,
    classes: int = 2,
    frames: int = 10,
    damaged: int | tuple[int, ...] = (),
    levels: tuple[int, ...] = (SIDE,),
    size: tuple[int, int] = (40, SIDE),
    actions: Sequence[Sequence[Action]] = (),
) -> ShardSet:
    """Videos of 40x32 pixels, or another size, in one shard per level; the packets of the videos `damaged` are noise at the finest level.

    Levels SOURCE pass the videos through.

    With `actions` it is a multi-label set: video i shows `actions[i % len(actions)]`.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = Folder.of(str(root / "set"))
    ingested = []
    for number in range(train + val):
        path = root / f"{number}.mp4"
        encode_frames(str(path), moving(frames + number % 3, *size, seed=number))
        ingested.append(ingest_video("", str(path), levels))
    stored = [[video.levels[number] for video in ingested] for number in range(len(levels))]
    videos = [video for video in stored[0] if video is not None]
    for number in (damaged,) if isinstance(damaged, int) else damaged:
        noise = bytes(byte ^ 0x5A for byte in videos[number].data)
        stored[0][number] = dataclasses.replace(videos[number], data=memoryview(noise))
    files, extents = zip(
        *(write_shard(folder, shard_name(level_name(side), 0), stored[number]) for number, side in enumerate(levels)),
        strict=True,
    )
    rows = [
        IndexRow(
            split="train" if number < train else "val", path=f"{number}.mp4", label=-1 if actions else number % classes, group=str(number),
            num_frames=video.source.num_frames, width=video.source.width, height=video.source.height,
            fps=video.source.fps, probe=ingested[number].probe, shard=0, extents=places,
            actions=tuple(actions[number % len(actions)]) if actions else (),
        )
        for number, (video, places) in enumerate(zip(videos, zip(*extents, strict=True), strict=True))
    ]  # fmt: skip
    names = tuple(f"class{number}" for number in range(classes))
    manifest = Manifest(
        version=MULTI_LABEL_VERSION if actions else VERSION, source="videos", source_digest="d", classes=names, counts={"train": train, "val": val},
        levels=tuple(Level(short_side=side, shards=(file,)) for side, file in zip(levels, files, strict=True)),
        codec=CODEC, index=write_index(folder, rows, [level_name(side) for side in levels], multi_label=bool(actions)),
        content_digest=content_digest(names, rows, [level_name(side) for side in levels], CODEC),
    )  # fmt: skip
    folder.write(MANIFEST, manifest.to_json().encode())
    return ShardSet.open(str(root / "set"))
