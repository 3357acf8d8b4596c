"""A dataset of six small videos, written by hand."""

from pathlib import Path

import numpy as np

from mgray.data.decode.encode import CODEC
from mgray.data.shards.index import IndexRow, SourceProbe, content_digest, write_index
from mgray.data.shards.manifest import MANIFEST, VERSION, Broken, Level, Manifest
from mgray.data.shards.packets import StoredVideo
from mgray.data.shards.writer import shard_name, write_shard
from mgray.data.storage import Folder

SIDE = 256
PROBE = SourceProbe(codec="h264", pixel_format="yuv420p", rotation=0, full_range=False, num_bytes=1)


def write_set(root: Path, videos: list[StoredVideo], shards: int = 2) -> Manifest:
    """Four training videos, then two for validation, in so many shards."""
    folder = Folder.of(str(root))
    files, rows = [], []
    size = len(videos) // shards
    for shard in range(shards):
        part = videos[shard * size : shard * size + size]
        file, extents = write_shard(folder, shard_name(str(SIDE), shard), part)
        files.append(file)
        for video, extent in zip(part, extents, strict=True):
            number = len(rows)
            rows.append(
                IndexRow(
                    split="train" if number < 4 else "val", path=f"a/{number}.mp4", label=number % 2, group=f"g{number}",
                    num_frames=video.source.num_frames, width=video.source.width, height=video.source.height,
                    fps=video.source.fps, probe=PROBE, shard=shard, extents=(extent,),
                )
            )  # fmt: skip
    classes = ("jump", "run")
    manifest = Manifest(
        version=VERSION, source="videos", source_digest="d", classes=classes, counts={"train": 4, "val": 2},
        levels=(Level(short_side=SIDE, shards=tuple(files)),), codec=CODEC, index=write_index(folder, rows, [str(SIDE)]),
        content_digest=content_digest(classes, rows, [str(SIDE)], CODEC), broken=(Broken(path="b.mp4", reason="is empty"),),
    )  # fmt: skip
    folder.write(MANIFEST, manifest.to_json().encode())
    return manifest


def same(one: StoredVideo, other: StoredVideo) -> bool:
    arrays = all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("pts", "key", "reference", "offsets", "sizes")
    )
    scalars = all(getattr(one, name) == getattr(other, name) for name in ("source", "width", "height", "extradata"))
    return arrays and scalars and bytes(one.data) == bytes(other.data)
