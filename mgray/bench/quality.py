"""What a pyramid costs in quality: its clips beside those of the full-size source, resized as torchvision does.

The reference decodes the source at full size, converts each frame to RGB, crops to whole pixels and resizes with antialiasing
(torchvision's `resized_crop`). Each clip of the schedule is compared with it by PSNR, once read from the source files through
mgray's own path (crop first, one conversion, one resize), once from the pyramid's finest level, and once from the level that
training would take.

Shape suffixes: T frames, H height, W width, C colours.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as F

from mgray.bench.clips import BenchVideos, pick_videos, store_videos, write_camera_videos
from mgray.bench.feed import Cell, cells_of, psnr, squared_error
from mgray.config import Run
from mgray.data.clip import ClipSpec
from mgray.data.decode.clips import decode_clip, decode_frames
from mgray.data.shards.shard_set import ShardSet
from mgray.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class GridQuality:
    """PSNR in dB over all pixels of the clips of one grid, 8 bits a colour."""

    frames: int
    size: int
    clips: int
    files_db: float
    """Read from the source files."""
    finest_db: float
    """Read from the pyramid's finest level."""
    shards_db: float
    """Read from the level that training takes."""
    levels: dict[str, int]
    """Clips that were read from each level."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, PSNR rounded to 0.01 dB."""
        return {
            "frames": self.frames, "size": self.size, "clips": self.clips, "files_db": round(self.files_db, 2),
            "finest_db": round(self.finest_db, 2), "shards_db": round(self.shards_db, 2), "levels": self.levels,
        }  # fmt: skip


def bench_quality(data: str, run: Run, *, videos: int = 12, clips: int = 12) -> list[GridQuality]:
    """Compare clips of every grid of a schedule.

    Args:
        data: a folder or list of videos; generated ones where it is empty.
        run: gives schedule, sampling, levels and how much a level may be enlarged.
        videos: videos that are tried at most.
        clips: clips of each grid.

    Raises:
        DataError: the videos cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="mgray-quality-") as folder:
        paths = pick_videos(data, videos) if data else write_camera_videos(folder, min(videos, 6))
        stored = store_videos(f"{folder}/stored", paths, run.data.levels)
        plan = Plan.compile(run.plan, max(len(stored.paths), 1_000_000))
        cells = sorted(cells_of(plan, stored.infos, clips, run), key=lambda cell: (-cell.frames, -cell.height))
        return [_compared(cell, stored, run.data.enlarge) for cell in cells]


def _compared(cell: Cell, stored: BenchVideos, enlarge: float) -> GridQuality:
    errors: dict[str, list[float]] = {"files": [], "finest": [], "shards": []}
    levels: Counter[str] = Counter()
    pyramid = stored.shards
    for spec in cell.specs:
        expected_THWC = _reference(stored.sources, spec)
        level = pyramid.level_for("train", spec.sample, spec.scale, enlarge)
        levels[pyramid.manifest.levels[level].name] += 1
        videos = {
            "files": stored.sources.video("train", spec.sample),
            "finest": pyramid.video("train", spec.sample),
            "shards": pyramid.video("train", spec.sample, level),
        }
        for name, video in videos.items():
            clip_THWC = np.empty_like(expected_THWC)
            decode_clip(video, spec, clip_THWC)
            errors[name].append(squared_error(clip_THWC, expected_THWC))
    files, finest, shards = (psnr(float(np.mean(errors[name]))) for name in ("files", "finest", "shards"))
    return GridQuality(
        frames=cell.frames, size=cell.height, clips=len(cell.specs), files_db=files, finest_db=finest, shards_db=shards,
        levels=dict(sorted(levels.items(), key=lambda item: -int(item[0]))),
    )  # fmt: skip


def _reference(sources: ShardSet, spec: ClipSpec) -> npt.NDArray[np.uint8]:
    """The clip as torchvision makes it of whole frames."""
    video = sources.video("train", spec.sample)
    frames = {
        index: np.rot90(frame.to_ndarray(format="rgb24"), video.quarter_turns)
        for index, frame in decode_frames(video, sorted(set(spec.frames)))
    }
    whole_TCHW = torch.from_numpy(np.stack([frames[index] for index in spec.frames])).permute(0, 3, 1, 2)
    left, top, right, bottom = (round(edge) for edge in spec.box)
    size = [spec.shape.height, spec.shape.width]
    clip_TCHW = F.resized_crop(whole_TCHW, top, left, bottom - top, right - left, size, antialias=True)
    if spec.flip:
        clip_TCHW = F.horizontal_flip(clip_TCHW)
    return np.asarray(clip_TCHW.permute(0, 2, 3, 1).contiguous().numpy())


def quality_rows(found: Sequence[GridQuality]) -> list[tuple[str, ...]]:
    """Cells of a table, one row a grid, with a head."""
    head = ("frames x crop", "clips", "files", "finest level", "level taken", "levels")
    rows = [
        (
            f"{row.frames} x {row.size}", str(row.clips), f"{row.files_db:.1f}", f"{row.finest_db:.1f}", f"{row.shards_db:.1f}",
            ", ".join(f"{level}: {count}" for level, count in row.levels.items()),
        )
        for row in found
    ]  # fmt: skip
    return [head, *rows]
