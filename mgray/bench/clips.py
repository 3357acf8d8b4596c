"""The videos of `mgray bench feed`: generated ones or the user's, stored as pyramid shards and as tables of their packets.

All is made in this process, without Ray, so that the CPU time of storing is measured too.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mgray.data.annotations import read_annotations
from mgray.data.clip import VideoInfo
from mgray.data.decode.encode import CODEC, encode_frames
from mgray.data.decode.passthrough import index_packets
from mgray.data.decode.transcode import Ingested, transcode
from mgray.data.shards.index import IndexRow, content_digest, write_index
from mgray.data.shards.manifest import MANIFEST, SOURCE, VERSION, Broken, Level, Manifest, level_name
from mgray.data.shards.packets import StoredVideo
from mgray.data.shards.shard_set import ShardSet
from mgray.data.shards.writer import shard_name, write_shard
from mgray.data.storage import Folder
from mgray.errors import DataError, VideoError

FPS = 30
SECONDS = 10
WIDTH, HEIGHT = 340, 256
CRF = 23
_SCENE = 768
"""Pixels of a generated scene's side."""
_SHOTS = (1, 3, 2)
"""Shots of the generated videos, in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingest:
    """CPU seconds that storing took, and the frames that it took them for."""

    frames: int
    cpu_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchVideos:
    """The same videos three times: as files, as packet tables of the files, and as pyramid shards; sample i is the same in all."""

    paths: tuple[str, ...]
    infos: tuple[VideoInfo, ...]
    source_bytes: int
    sources: ShardSet
    shards: ShardSet
    ingest: dict[str, Ingest]
    """By level set, such as "256 180 128" or "source"."""
    broken: tuple[Broken, ...]

    @property
    def level_bytes(self) -> dict[str, int]:
        """Bytes of each level's shards."""
        return {level.name: sum(file.num_bytes for file in level.shards) for level in self.shards.manifest.levels}


def write_camera_videos(folder: str, count: int, *, gop: int = 250, frames: int = SECONDS * FPS) -> tuple[str, ...]:
    """Write videos as a hand-held camera might take them: 340x256, 30 frames/s, textured, noisy, of one to three shots.

    H.264 (x264 veryfast, crf 23, 3 B frames, B-pyramid, scene cut on), about 470 KB for 10 s: what Kinetics' clips have once they
    are reduced to that size.

    Args:
        gop: frames of the longest GOP; 250 is what x264 and ffmpeg take without being told.
    """
    paths = []
    for number in range(count):
        rng = np.random.default_rng([7, number])
        shots = _SHOTS[number % len(_SHOTS)]
        bounds = [frames * shot // shots for shot in range(shots + 1)]
        clip_THWC = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
        for first, last in itertools.pairwise(bounds):
            _film(clip_THWC[first:last], rng)
        path = os.path.join(folder, f"{number:03d}.mp4")
        encode_frames(path, clip_THWC, fps=FPS, crf=CRF, gop=gop)
        paths.append(path)
    return tuple(paths)


def _film(out_THWC: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """One shot: a window that pans, zooms and shakes over a still scene."""
    frames, height, width, _ = out_THWC.shape
    scene_1CHW = _scene(rng)
    noise_HWC = torch.from_numpy(rng.normal(0, rng.uniform(5.8, 7), (2 * height, 2 * width, 3)).astype(np.float32))
    time_s = np.arange(frames) / FPS

    def shake(size: float) -> npt.NDArray[np.float64]:
        waves = [
            size * rng.normal() / k * np.sin(2 * np.pi * (k * time_s / 4 + rng.uniform())) for k in (1, 2, 4, 7, 13)
        ]
        return np.asarray(np.sum(waves, axis=0))

    zoom, angle = 0.4 * np.exp(shake(0.06)), shake(0.02)
    across = rng.uniform(-0.3, 0.3) + rng.normal(0, 0.05) * time_s + shake(0.015)
    down = rng.uniform(-0.3, 0.3) + rng.normal(0, 0.03) * time_s + shake(0.015)
    cos, sin, aspect = np.cos(angle) * zoom, np.sin(angle) * zoom, height / width
    for index in range(frames):
        turn = [
            [cos[index], -sin[index] * aspect, across[index]],
            [sin[index], cos[index] * aspect, down[index]],
        ]
        grid = F.affine_grid(torch.tensor([turn], dtype=torch.float32), [1, 3, height, width], align_corners=False)
        seen = F.grid_sample(scene_1CHW, grid, padding_mode="reflection", align_corners=False)[0].permute(1, 2, 0)
        top, left = rng.integers(height), rng.integers(width)
        noisy = seen + noise_HWC[top : top + height, left : left + width]
        out_THWC[index] = noisy.clamp(0, 255).to(torch.uint8).numpy()


def _scene(rng: np.random.Generator) -> Tensor:
    """A picture with the spectrum of photographs, and things with edges in it: float32 [1, 3, side, side], 0..255."""
    frequency = np.hypot(np.fft.fftfreq(_SCENE)[:, None], np.fft.rfftfreq(_SCENE)[None])
    waves = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    picture = np.fft.irfft2(waves / np.maximum(frequency, 1 / _SCENE) ** 1.2, (_SCENE, _SCENE))
    y, u, v = picture / picture.std(axis=(1, 2), keepdims=True) * np.array([38, 12, 12])[:, None, None]
    rgb = np.stack([y + u, y - (u + v) / 2, y + v]).astype(np.float32) + 120
    for _ in range(60):
        height, width = rng.integers(20, 140, 2)
        top, left = rng.integers(_SCENE - height), rng.integers(_SCENE - width)
        thing = rgb[:, top : top + height, left : left + width]
        thing[...] = 0.35 * thing + 0.65 * rng.uniform(20, 230, (3, 1, 1))
    return torch.from_numpy(rgb)[None]


def pick_videos(data: str, count: int) -> tuple[str, ...]:
    """At most `count` files of a folder or list of videos, spread over its training split.

    Raises:
        DataError: the source cannot be used.
    """
    annotations = read_annotations(data)
    samples = [sample for sample in annotations.samples if sample.split == "train"]
    count = min(count, len(samples))
    return tuple(annotations.locate(samples[index * len(samples) // count]) for index in range(count))


def store_videos(
    folder: str, paths: Sequence[str], levels: Sequence[int], *, further: Sequence[Sequence[int]] = ()
) -> BenchVideos:
    """Ingest videos into `folder`, as pyramid shards and as packet tables; those that do not decode are left out.

    Args:
        levels: short sides of the shards in pixels, from the finest to the coarsest.
        further: more sets of levels, whose encoding is only timed, on the first video.

    Raises:
        DataError: none of them decodes.
    """
    kept: list[str] = []
    broken: list[Broken] = []
    pyramids: list[Ingested] = []
    tables: list[Ingested] = []
    spent = {"pyramid": 0.0, "source": 0.0}
    for path in paths:
        try:
            started = time.process_time()
            pyramid = transcode(path, levels)
            spent["pyramid"] += time.process_time() - started
            started = time.process_time()
            table = index_packets(path)
            spent["source"] += time.process_time() - started
        except VideoError as error:
            broken.append(Broken(path=path, reason=error.problem))
            continue
        if pyramid.probe.rotation:
            broken.append(Broken(path=path, reason="is rotated, which the plain readers do not heed"))
            continue
        kept.append(path)
        pyramids.append(pyramid)
        tables.append(table)
    if not kept:
        problem = f"holds no video to measure on ({broken[0].path} {broken[0].reason})" if broken else "holds no video"
        raise DataError("data", os.path.dirname(paths[0]) if paths else "", problem, "give other videos")
    infos = tuple(_stored(pyramid).source for pyramid in pyramids)
    frames = sum(info.num_frames for info in infos)
    ingest = {
        " ".join(map(str, levels)): Ingest(frames=frames, cpu_s=spent["pyramid"]),
        "source": Ingest(frames=frames, cpu_s=spent["source"]),
    }
    for others in further:
        started = time.process_time()
        transcode(kept[0], others)
        ingest[" ".join(map(str, others))] = Ingest(
            frames=infos[0].num_frames, cpu_s=time.process_time() - started
        )  # fmt: skip
    return BenchVideos(
        paths=tuple(kept),
        infos=infos,
        source_bytes=sum(os.path.getsize(path) for path in kept),
        sources=_write_set(os.path.join(folder, "source"), kept, tables, SOURCE),
        shards=_write_set(os.path.join(folder, "shards"), kept, pyramids, levels),
        ingest=ingest,
        broken=tuple(broken),
    )


def _stored(ingested: Ingested) -> StoredVideo:
    video = ingested.levels[0]
    assert video is not None, "every video is at the finest level"
    return video


def _write_set(root: str, paths: Sequence[str], videos: Sequence[Ingested], levels: Sequence[int]) -> ShardSet:
    """One shard a level, all videos in the training split."""
    folder = Folder.of(root)
    names = [level_name(level) for level in levels]
    files, extents = zip(
        *(
            write_shard(folder, shard_name(name, 0), [video.levels[number] for video in videos])
            for number, name in enumerate(names)
        ),
        strict=True,
    )
    rows = [
        IndexRow(
            split="train", path=path, label=0, group="", **dataclasses.asdict(_stored(video).source), probe=video.probe,
            shard=0, extents=places,
        )
        for path, video, places in zip(paths, videos, zip(*extents, strict=True), strict=True)
    ]  # fmt: skip
    manifest = Manifest(
        version=VERSION,
        source=os.path.dirname(paths[0]),
        source_digest="",
        classes=("clip",),
        counts={"train": len(rows), "val": 0},
        levels=tuple(Level(short_side=level, shards=(file,)) for level, file in zip(levels, files, strict=True)),
        codec=CODEC,
        index=write_index(folder, rows, names),
        content_digest=content_digest(("clip",), rows, names, CODEC),
    )
    folder.write(MANIFEST, manifest.to_json().encode())
    return ShardSet.open(root)
