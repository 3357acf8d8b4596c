"""The ways to read a clip that `mgray bench feed` sets side by side: three that people use, two of mgray's, and a mere copy.

The three decode whole frames to RGB, cut the window out, and resize it with torch (bilinear, antialiased, 8-bit: its fastest
way). Each is told to decode on one thread.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mgray.bench.clips import BenchVideos
from mgray.data.clip import ClipSpec, VideoInfo
from mgray.data.decode.clips import decode_clip
from mgray.data.shards.shard_set import ShardSet
from mgray.errors import VideoError
from mgray.plan import ClipShape

Clip = npt.NDArray[np.uint8]
"""uint8 [frames, height, width, 3], RGB."""
Reader = Callable[[ClipSpec, Clip], None]
"""Fills a clip as its specification says."""

NAMES = ("pyav", "decord", "torchcodec", "files", "shards", "copy")
_SEEK_EARLY = 5
"""Frames that a seek aims ahead of the first wanted one (torchvision's read_video does too): containers seek by decoding time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readers:
    """The readers that work here, and why the others do not."""

    by_name: dict[str, Reader]
    unavailable: dict[str, str]


def make_readers(videos: BenchVideos, enlarge: float) -> Readers:
    """All readers; what is no part of mgray must read a frame of each video first.

    Args:
        enlarge: how much a coarse level of the shards may be enlarged.
    """
    paths = videos.paths
    rivals: dict[str, Callable[[], Reader]] = {
        "decord": lambda: _decord(paths),
        "torchcodec": lambda: _torchcodec(paths),
    }
    made: dict[str, Reader] = {"pyav": _pyav(videos)}
    unavailable = {}
    for name, make in rivals.items():
        try:
            read = make()
            for spec in map(_first_frame, range(len(paths)), videos.infos):
                read(spec, np.zeros((1, spec.shape.height, spec.shape.width, 3), np.uint8))
            made[name] = read
        except ImportError as error:
            unavailable[name] = f"is not installed ({error})"
        except Exception as error:  # whatever it is that another library raises
            unavailable[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    made["files"] = _mgray(videos.sources, 1.0)
    made["shards"] = _mgray(videos.shards, enlarge)
    made["copy"] = _copy()
    return Readers(by_name=made, unavailable=unavailable)


def _first_frame(sample: int, video: VideoInfo) -> ClipSpec:
    shape = ClipShape(1, video.height, video.width)
    return ClipSpec(0, sample, shape, (0,), (0.0, 0.0, float(video.width), float(video.height)), False)


def _mgray(shards: ShardSet, enlarge: float) -> Reader:
    """As training reads a clip (`mgray.data.source`)."""

    def read(spec: ClipSpec, out: Clip) -> None:
        level = shards.level_for("train", spec.sample, spec.scale, enlarge)
        decode_clip(shards.video("train", spec.sample, level, spec.frames), spec, out)

    return read


def _copy() -> Reader:
    """The finished clip from memory: no reader is faster."""
    finished = functools.lru_cache(maxsize=None)(lambda shape: np.full(shape, 128, np.uint8))
    return lambda spec, out: np.copyto(out, finished(out.shape))


def _pyav(videos: BenchVideos) -> Reader:
    """Open, seek, decode the span to RGB, pick frames."""
    import av

    def read(spec: ClipSpec, out: Clip) -> None:
        fps, first, last = videos.infos[spec.sample].fps, spec.frames[0], spec.frames[-1]
        indices: list[int] = []
        pictures: list[Clip] = []
        with av.open(videos.paths[spec.sample]) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            base, begin = stream.time_base, stream.start_time or 0
            assert base is not None, "a video stream has a time base"
            if first > _SEEK_EARLY:
                container.seek(begin + round((first - _SEEK_EARLY) / fps / base), stream=stream)
            for frame in container.decode(stream):
                index = round(float(((frame.pts or 0) - begin) * base) * fps)
                if index >= first:
                    indices.append(index)
                    picture: Any = frame.to_ndarray(format="rgb24", threads=1)
                    pictures.append(picture)
                if index >= last:
                    break
        if not pictures:
            raise VideoError("data", videos.paths[spec.sample], "shows no frame after a seek", "give other videos")
        picked = np.minimum(np.searchsorted(indices, spec.frames), len(indices) - 1)
        _finish(torch.from_numpy(np.stack([pictures[index] for index in picked])), spec, out)

    return read


def _decord(paths: Sequence[str]) -> Reader:
    decord = importlib.import_module("decord")

    def read(spec: ClipSpec, out: Clip) -> None:
        video = decord.VideoReader(paths[spec.sample], num_threads=1)
        _finish(torch.from_numpy(video.get_batch(list(spec.frames)).asnumpy()), spec, out)

    return read


def _torchcodec(paths: Sequence[str]) -> Reader:
    decoders = importlib.import_module("torchcodec.decoders")

    def opened(path: str) -> Any:
        return decoders.VideoDecoder(path, dimension_order="NHWC", seek_mode="approximate", num_ffmpeg_threads=1)

    def read(spec: ClipSpec, out: Clip) -> None:
        _finish(opened(paths[spec.sample]).get_frames_at(indices=list(spec.frames)).data, spec, out)

    return read


def _finish(frames_THWC: Tensor, spec: ClipSpec, out: Clip) -> None:
    """Cut the window out to the nearest pixels, resize, mirror."""
    left, top, right, bottom = map(round, spec.box)
    window_TCHW = frames_THWC[:, top:bottom, left:right].permute(0, 3, 1, 2)
    size = [spec.shape.height, spec.shape.width]
    clip_TCHW = F.interpolate(window_TCHW, size, mode="bilinear", antialias=True, align_corners=False)
    if spec.flip:
        clip_TCHW = clip_TCHW.flip(3)
    torch.from_numpy(out).copy_(clip_TCHW.permute(0, 2, 3, 1))
