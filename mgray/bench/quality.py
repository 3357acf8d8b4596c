"""What a pyramid costs in quality: its clips beside those of the full-size source, resized as torchvision does.

The reference decodes the source at full size, converts each frame to RGB, crops to whole pixels and resizes with antialiasing
(torchvision's `resized_crop`). Each clip of the schedule is compared with it by PSNR, once read from the source files through
mgray's own path (crop first, one conversion, one resize) and once from the level of the pyramid that training would take.

Shape suffixes: T frames, H height, W width, C colours.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as F

from mgray.config import Run
from mgray.data.annotations import read_annotations
from mgray.data.clip import ClipSpec, train_clip
from mgray.data.decode import decode_clip, decode_frames
from mgray.data.ingest import SOURCE, ingest
from mgray.data.shard import ShardSet
from mgray.plan import Plan, Step
from mgray.trainer import ray_running

_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GridQuality:
    """PSNR in dB over all pixels of the clips of one grid, 8 bits a colour."""

    frames: int
    size: int
    clips: int
    files_db: float
    """Read from the source files."""
    shards_db: float
    """Read from the pyramid."""
    finest_db: float
    """Read from the pyramid's finest level only."""
    levels: dict[str, int]
    """Clips that were read from each level."""


def quality(data: str, run: Run, *, levels: Sequence[int] = (), clips: int = 12) -> list[GridQuality]:
    """Compare clips of every grid of a schedule.

    Args:
        data: a folder or list of videos.
        run: gives the schedule, the sampling and how much a level may be enlarged.
        levels: short sides of the pyramid; those of the run where none are given.
        clips: clips of each grid, each of another video as long as there are any.

    Raises:
        DataError: the videos cannot be used.
    """
    read_annotations(data)
    with tempfile.TemporaryDirectory(prefix="mgray-quality-") as folder, ray_running(run):
        sets = []
        for name, sides in (("source", SOURCE), ("pyramid", tuple(levels) or run.data.levels)):
            ingest(data, os.path.join(folder, name), levels=sides)
            sets.append(ShardSet.open(os.path.join(folder, name)))
        source, pyramid = sets
        plan = Plan.compile(run.plan, source.num_samples("train"))
        return [
            _compared(key, list(specs), source, pyramid, run.data.enlarge)
            for key, specs in _specs(plan, source, run, clips)
        ]


def quality_json(rows: Sequence[GridQuality]) -> list[dict[str, Any]]:
    """Plain values, PSNR rounded to 0.01 dB."""
    return [
        {
            "frames": row.frames, "size": row.size, "clips": row.clips, "files_db": round(row.files_db, 2),
            "shards_db": round(row.shards_db, 2), "finest_db": round(row.finest_db, 2), "levels": row.levels,
        }
        for row in rows
    ]  # fmt: skip


def _specs(plan: Plan, shards: ShardSet, run: Run, clips: int) -> Iterator[tuple[tuple[int, int], Iterator[ClipSpec]]]:
    """For each grid, clips as its first step draws them, of videos one after the other."""
    steps: dict[tuple[int, int], Step] = {}
    for phase in plan.phases:
        for slot in range(min(phase.num_steps, len(phase.batches))):
            step = plan.step_at(phase.first_step + slot)
            steps.setdefault((step.shape.frames, step.shape.height), step)
    total = shards.num_samples("train")
    for key, step in sorted(steps.items(), reverse=True):
        yield (
            key,
            (
                train_clip(
                    step, position, position % total, shards.info("train", position % total),
                    seed=_SEED, fps=run.data.fps, flip=run.data.flip,
                )
                for position in range(clips)
            ),
        )  # fmt: skip


def _compared(
    key: tuple[int, int], specs: list[ClipSpec], source: ShardSet, pyramid: ShardSet, enlarge: float
) -> GridQuality:
    errors: dict[str, list[float]] = {"files": [], "shards": [], "finest": []}
    levels: Counter[str] = Counter()
    for spec in specs:
        expected_THWC = _reference(source, spec)
        level = pyramid.level_for("train", spec.sample, spec.scale, enlarge)
        levels[pyramid.manifest.levels[level].name] += 1
        videos = {
            "files": source.video("train", spec.sample),
            "shards": pyramid.video("train", spec.sample, level),
            "finest": pyramid.video("train", spec.sample),
        }
        for name, video in videos.items():
            clip_THWC = np.empty_like(expected_THWC)
            decode_clip(video, spec, clip_THWC)
            errors[name].append(squared_error(clip_THWC, expected_THWC))
    means = {name: psnr(float(np.mean(values))) for name, values in errors.items()}
    return GridQuality(
        frames=key[0], size=key[1], clips=len(specs), files_db=means["files"], shards_db=means["shards"],
        finest_db=means["finest"], levels=dict(levels),
    )  # fmt: skip


def _reference(source: ShardSet, spec: ClipSpec) -> npt.NDArray[np.uint8]:
    """The clip as torchvision makes it of whole frames."""
    video = source.video("train", spec.sample)
    frames = {
        index: np.rot90(frame.to_ndarray(format="rgb24"), video.quarter_turns)
        for index, frame in decode_frames(video, sorted(set(spec.frames)))
    }
    whole_TCHW = torch.from_numpy(np.stack([frames[index] for index in spec.frames])).permute(0, 3, 1, 2)
    left, top, right, bottom = (round(edge) for edge in spec.box)
    clip_TCHW = F.resized_crop(
        whole_TCHW, top, left, bottom - top, right - left, [spec.shape.height, spec.shape.width], antialias=True
    )
    if spec.flip:
        clip_TCHW = F.horizontal_flip(clip_TCHW)
    return np.asarray(clip_TCHW.permute(0, 2, 3, 1).contiguous().numpy())


def squared_error(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Mean squared difference of two clips of one shape."""
    return float(np.mean((one.astype(np.float32) - other.astype(np.float32)) ** 2))


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error, 8 bits a colour; infinite where there is none."""
    return 10 * math.log10(255**2 / error) if error else math.inf
