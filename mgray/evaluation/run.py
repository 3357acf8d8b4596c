"""Evaluation of a checkpoint over several views a video, in this process or on Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from mgray.cluster import num_gpus
from mgray.config import Run, ScaleSection
from mgray.data.clip import Views
from mgray.data.feed import own_error
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import ValSource
from mgray.errors import ConfigError, DataError, TrainingError
from mgray.plan import ClipShape
from mgray.train.checkpoint import CheckpointMeta, newest_checkpoint, read_meta
from mgray.train.quarantine import check_broken
from mgray.train.scores import Figures, figures_of
from mgray.train.session import LocalSession
from mgray.train.views import Pool, VideoScores, score_views, trained_worker
from mgray.trainer import ray_running

Progress = Callable[[int, int], None]
"""Told how many videos are done, of how many."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Viewing:
    """How a checkpoint is evaluated."""

    views: Views = dataclasses.field(default_factory=Views)
    pool: Literal["auto", "mean", "max"] = "auto"
    """How the views' scores become the video's; auto is the maximum where videos have several classes, else the mean."""
    short_side: int = 0
    """Pixels that a video's short side is resized to; 0 is the plan's jitter_min (the crop, where that is larger)."""
    crop: int = 0
    """Width and height of a crop in pixels; 0 is the plan's."""
    workers: int = 0
    """Ray tasks that share the videos; 0 evaluates in this process."""
    max_broken: float | None = None
    """Share of the videos that may be broken; None is the run's `data.max_broken`."""

    def __post_init__(self) -> None:
        for name in ("short_side", "crop", "workers"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(name, value, "must not be negative", "give a positive whole number, or leave it out")
        if self.max_broken is not None and not 0 <= self.max_broken <= 1:
            raise ConfigError("max_broken", self.max_broken, "is outside [0, 1]", "give a share, e.g. 0.01")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A checkpoint's scores on the validation split."""

    checkpoint: Path
    step: int
    source: ValSource
    pool: Pool
    device: Device
    workers: int
    """Ray tasks that shared the videos; 0: this process."""
    seconds: float
    """From the first video to the last (with the start of the tasks, on Ray)."""
    found: VideoScores
    figures: Figures

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.shards.classes

    @property
    def paths(self) -> list[str]:
        """Of the videos that have scores, in the order of the split."""
        return [self.source.shards.path("val", sample) for sample in self.found.samples_V.tolist()]

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Paths of the videos that were left out, and why."""
        return [(self.source.shards.path("val", sample), reason) for sample, reason in self.found.broken]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        source, shape = self.source, self.source.shape
        return {
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "data": source.shards.root,
            "num_videos": len(self.found.samples_V),
            "broken": [{"path": path, "reason": reason} for path, reason in self.broken],
            "views": str(source.views),
            "pool": self.pool,
            "device": self.device,
            "frames": shape.frames,
            "stride": source.stride,
            "crop": shape.height,
            "short_side": source.short_side,
            "seconds": round(self.seconds, 3),
            **self.figures.to_json(),
        }


def check_output(field: str, out: Path) -> None:
    """Refuse a file that cannot be written before anything is computed; makes its folder.

    Raises:
        ConfigError: it names the file.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(field, str(out), f"cannot be written ({error.strerror})", "name another file") from None
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(field, str(out), "is a folder, or in one that cannot be written to", "name another file")


def check_confusion(path: str) -> None:
    """Refuse a confusion matrix of videos that have several classes.

    Raises:
        CheckpointError: `path` holds no whole checkpoint.
        ConfigError: its videos have.
    """
    if read_meta(newest_checkpoint(Path(path).expanduser())).multi_label:
        raise ConfigError(
            "plot", path, "has several classes a video, of which there is no confusion matrix", "leave it out, or give --per-class"
        )  # fmt: skip


def evaluate_run(
    path: str, viewing: Viewing | None = None, *, data: str | None = None, on_progress: Progress | None = None
) -> Evaluation:
    """Evaluate a run's newest checkpoint, or the one given; the scores do not depend on the number of workers.

    Videos that cannot be read or decoded are left out.

    Raises:
        CheckpointError: `path` holds no whole checkpoint.
        ConfigError: the short side is smaller than the crop, or there are more workers than GPUs.
        DataError: the shards are not there, have other classes, or no video to validate on; or too many of them are broken.
        TrainingError: Ray gave a task up.
    """
    viewing = viewing or Viewing()
    folder = newest_checkpoint(Path(path).expanduser())
    meta = read_meta(folder)
    pool = _pool(viewing, meta)
    run = Run.from_json(meta.run)
    source = _source(run, _shards(run, meta, folder, data), viewing)
    total = source.shards.num_samples("val")
    max_broken = run.data.max_broken if viewing.max_broken is None else viewing.max_broken
    score = _scored_on_ray if viewing.workers else _scored_here
    broken: dict[int, str] = {}
    show = on_progress or (lambda done, total: None)
    started, parts, done = time.perf_counter(), [], 0
    show(done, total)
    with (
        _computing(run, viewing) as device,
        contextlib.closing(score(run, folder, meta, source, viewing, device)) as scored,
    ):
        for part in scored:  # in the order of the split, whoever scores them
            parts.append(part)
            broken |= dict(part.broken)
            check_broken(source.shards, "val", broken, max_broken, "raise --max-broken")
            done += len(part.samples_V) + len(part.broken)
            show(done, total)
    found = VideoScores.joined(parts, total)
    if not len(found.samples_V):
        check_broken(source.shards, "val", broken, 0.0, "give others as --data")
    return Evaluation(
        checkpoint=folder, step=meta.step, source=source, pool=pool, device=device, workers=viewing.workers, seconds=time.perf_counter() - started,
        found=found, figures=figures_of(found, meta.classes),
    )  # fmt: skip


def _pool(viewing: Viewing, meta: CheckpointMeta) -> Pool:
    if viewing.pool == "auto":
        return "max" if meta.multi_label else "mean"
    return viewing.pool


def _shards(run: Run, meta: CheckpointMeta, folder: Path, data: str | None) -> ShardSet:
    stored = folder.parent / "data.json"
    where = data or (json.loads(stored.read_text())["shards"] if stored.is_file() else run.data.path)
    shards = ShardSet.open(where)
    if (shards.classes, shards.multi_label) != (meta.classes, meta.multi_label):
        raise DataError("data", where, f"has other classes than the checkpoint ({len(shards.classes)}, {len(meta.classes)})", "give the shards it was trained on, or ones with its classes")  # fmt: skip
    if not shards.num_samples("val"):
        raise DataError("data", where, "holds no video to validate on", "ingest videos of a split val, or give others")
    return shards


def _source(run: Run, shards: ShardSet, viewing: Viewing) -> ValSource:
    crop = viewing.crop or run.plan.crop
    short_side = viewing.short_side or max(run.plan.jitter_min, crop)
    if short_side < crop:
        raise ConfigError(
            "short_side", short_side, f"is smaller than the crop of {crop}", "give more, or a smaller --crop"
        )
    return ValSource(
        shards=shards,
        shape=ClipShape(run.plan.frames, crop, crop),
        stride=run.plan.stride,
        short_side=short_side,
        fps=run.data.fps,
        batch=max(1, run.train.eval_batch // len(viewing.views)),
        views=viewing.views,
        sampling=run.data.sampling,
    )  # fmt: skip


@contextlib.contextmanager
def _computing(run: Run, viewing: Viewing) -> Iterator[Device]:
    """What to compute on; with Ray for as long as the context lasts where there are workers."""
    if not viewing.workers:
        yield "cuda" if torch.cuda.is_available() else "cpu"
        return
    scale = dataclasses.replace(run.scale, workers=viewing.workers)
    with ray_running(dataclasses.replace(run, scale=scale)) as grows:
        yield device_of(scale, viewing.workers, num_gpus(), grows=grows)


def device_of(scale: ScaleSection, workers: int, gpus: float, *, grows: bool) -> Device:
    """What workers compute on where Ray has so many GPUs: one each, or none where there is none, also of a run that asked for them.

    Raises:
        ConfigError: there are fewer GPUs than workers, and no more will come.
    """
    if scale.gpu == "no" or not gpus:
        return "cpu"
    if gpus < workers and not grows:
        raise ConfigError(
            "workers", workers, f"is more than the {gpus:g} GPUs that Ray finds here", f"give at most {gpus:.0f}"
        )
    return "cuda"


def _scored_here(
    run: Run, folder: Path, meta: CheckpointMeta, source: ValSource, viewing: Viewing, device: Device
) -> Generator[VideoScores, None, None]:
    session = LocalSession(folder.parent, run.feed, device=torch.device(device))
    worker = trained_worker(folder, meta, session)
    yield from score_views(worker, session, source, _pool(viewing, meta), run.train.eval_batch)


def _scored_on_ray(
    run: Run, folder: Path, meta: CheckpointMeta, source: ValSource, viewing: Viewing, device: Device
) -> Generator[VideoScores, None, None]:
    """Each task takes every so-many-th batch and hands each on when it is scored."""
    task: Any = ray.remote(num_cpus=run.scale.cpus, num_gpus=int(device == "cuda"), num_returns="streaming")(_share)
    streams: list[Any] = [
        task.remote(run, folder.absolute(), meta, source, viewing, rank, device) for rank in range(viewing.workers)
    ]
    try:
        for refs in itertools.zip_longest(*streams):
            yield from ray.get([ref for ref in refs if ref is not None])
    except ray.exceptions.RayError as error:
        own = own_error(error)
        if own is not error:
            raise own from error
        problem = f"was given up ({' '.join(str(error).split())[-300:]})"
        raise TrainingError("evaluation", str(folder), problem, "see the logs in Ray's session folder") from error
    finally:
        for stream in streams:
            ray.cancel(stream)


def _share(
    run: Run, folder: Path, meta: CheckpointMeta, source: ValSource, viewing: Viewing, rank: int, device: Device
) -> Iterator[VideoScores]:
    """One task's videos, batch by batch."""
    torch.set_num_threads(run.scale.threads or max(1, int(run.scale.cpus)))
    decoders = run.feed.decoders or max(1, (os.cpu_count() or 1) // viewing.workers - 1)
    session = LocalSession(
        folder.parent, dataclasses.replace(run.feed, decoders=decoders), rank, viewing.workers, torch.device(device)
    )  # fmt: skip
    worker = trained_worker(folder, meta, session)
    yield from score_views(worker, session, source, _pool(viewing, meta), run.train.eval_batch)
