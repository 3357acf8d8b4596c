"""What a clip costs to read: mgray's two ways beside PyAV, decord, torchcodec and a mere copy, on every grid of a schedule.

The clips are those that the plan draws (stride, start, side, window and mirroring of real positions of its sample stream); all readers
get the same ones, one after the other on one thread, and the least CPU time of some rounds counts for each clip. The stream's
videos are dealt out evenly, so that each cell sees all of them.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mgray.bench.clips import BenchVideos, pick_videos, store_videos, write_camera_videos
from mgray.bench.readers import Clip, Reader, make_readers
from mgray.config import Run
from mgray.data.clip import ClipSpec, VideoInfo, train_clip
from mgray.plan import BatchShape, Phase, Plan, Step
from workloads import WORKLOADS

if TYPE_CHECKING:
    from mgray.bench.pipeline import PipelineCost

WORKLOAD = "kinetics400_slowfast_r50"
NUM_SAMPLES = 240_436
"""Kinetics-400's training clips: they set the schedule's steps."""
LEVELS = (256, 226, 160)
_FURTHER = ((256, 128), (256,), (128,))
"""Sets of levels whose encoding is timed besides."""
_SCATTER = 7919
"""Takes clips from all over a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedBench:
    """What to measure, and how long."""

    data: str = ""
    """A folder or list of videos; empty generates 340x256 clips of 10 s."""
    spans: Literal["varied", "kept"] = "varied"
    """What a coarse grid covers of a video (`plan.spans`)."""
    levels: tuple[int, ...] = LEVELS
    """Short sides of the pyramid in pixels, falling."""
    enlarge: float = 1.0
    """How much a level coarser than the finest may be enlarged."""
    videos: int = 6
    clips: int = 18
    """Clips of a cell."""
    rounds: int = 3
    """Times that each clip is read by each reader; the least counts."""
    gop: int = 250
    """Frames of the longest GOP of generated videos."""
    further: bool = True
    """Time the encoding of other sets of levels too."""
    ray: bool = False
    """Measure what a rank's Ray Data pipeline adds to decoding too."""
    budget_s: float = float("inf")
    """Seconds after which no further round begins."""

    def quick(self) -> FeedBench:
        """The same for an answer within a minute."""
        return dataclasses.replace(self, videos=3, clips=4, rounds=4, further=False, budget_s=30.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A grid of the schedule, and clips of it to measure on."""

    frames: int
    height: int
    width: int
    share: float
    """Of the schedule's clips."""
    specs: tuple[ClipSpec, ...]

    @property
    def name(self) -> str:
        return (
            f"{self.frames}x{self.height}" if self.height == self.width else f"{self.frames}x{self.height}x{self.width}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CellCost:
    """A cell's mean CPU seconds of a clip by reader, and how like the clips are to those of `files` (PSNR, dB)."""

    name: str
    frames: int
    size: int
    share: float
    seconds: Mapping[str, float]
    psnr_db: Mapping[str, float]
    levels: Mapping[str, int]
    """Clips that were read from each level of the shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """CPU seconds of a global step: the mean over a schedule's steps, and the dearest."""

    mean: float
    worst: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedResult:
    """What a bench of the feed found."""

    bench: FeedBench
    rounds: int
    """Rounds that there was time for."""
    cells: tuple[CellCost, ...]
    steps: Mapping[str, StepCost]
    unavailable: Mapping[str, str]
    videos: BenchVideos
    pipelines: Mapping[str, PipelineCost] = field(default_factory=dict)
    """By cell; empty where they were not measured."""

    @property
    def ray_overhead(self) -> float | None:
        """What Ray's pipelines add to the seconds of decoding, over the schedule's blocks (which have about the same bytes)."""
        if not self.pipelines:
            return None
        weights = {cell.name: cell.share * cell.frames * cell.size**2 for cell in self.cells}
        decoded = sum(weights[name] * cost.decoded_s for name, cost in self.pipelines.items())
        delivered = sum(weights[name] * cost.delivered_s for name, cost in self.pipelines.items())
        return delivered / decoded - 1

    @property
    def readers(self) -> tuple[str, ...]:
        return tuple(self.steps)

    def clips_per_s(self, reader: str) -> float:
        """Clips a second and core, over the schedule's clips."""
        return 1 / sum(cell.share * cell.seconds[reader] for cell in self.cells)

    def ratio(self, reader: str, other: str) -> float | None:
        """How many times as fast as `other`; None where that does not work here."""
        return self.clips_per_s(reader) / self.clips_per_s(other) if other in self.steps else None

    def to_json(self) -> dict[str, Any]:
        videos = self.videos
        stored = videos.level_bytes
        return {
            "ratio_over_pyav": _short(self.ratio("shards", "pyav")),
            "ratio_over_torchcodec": _short(self.ratio("shards", "torchcodec")),
            "ratio_over_decord": _short(self.ratio("shards", "decord")),
            "files_ratio_over_pyav": _short(self.ratio("files", "pyav")),
            "clips_per_s_per_core": {name: _short(self.clips_per_s(name)) for name in self.readers},
            "cpu_seconds_per_global_step": {
                name: {
                    "mean": _short(cost.mean), "worst": _short(cost.worst), "worst_over_mean": _short(cost.worst / cost.mean),
                }
                for name, cost in self.steps.items()
            },
            "cells": [
                {
                    "cell": cell.name, "frames": cell.frames, "size": cell.size, "share_of_clips": _short(cell.share),
                    "clips_per_s_per_core": {name: _short(1 / seconds) for name, seconds in cell.seconds.items()},
                    "cpu_ms_per_clip": {name: _short(1000 * seconds) for name, seconds in cell.seconds.items()},
                    "psnr_db_to_files": {name: _short(value) for name, value in cell.psnr_db.items()},
                    "clips_from_level": dict(cell.levels),
                }
                for cell in self.cells
            ],
            "ray_overhead": _short(self.ray_overhead),
            "ray": {
                name: {
                    "decoded_ms_per_block": _short(1000 * cost.decoded_s),
                    "delivered_ms_per_block": _short(1000 * cost.delivered_s),
                    "overhead": _short(cost.overhead),
                }
                for name, cost in self.pipelines.items()
            },
            "unavailable": dict(self.unavailable),
            "storage_ratio": _short(sum(stored.values()) / videos.source_bytes),
            "storage": {"source_bytes": videos.source_bytes, "level_bytes": stored},
            "ingest_frames_per_s_per_core": {
                name: _short(cost.frames / cost.cpu_s) for name, cost in videos.ingest.items()
            },
            "spans": self.bench.spans,
            "workload": WORKLOAD,
            "settings": {**dataclasses.asdict(self.bench), "budget_s": None, "rounds": self.rounds},
            "videos": [
                {"path": path, **dataclasses.asdict(info)} for path, info in zip(videos.paths, videos.infos, strict=True)
            ],
            "left_out": [dataclasses.asdict(item) for item in videos.broken],
            "method": "CPU time of the process (time.process_time), one thread for torch, decoders and conversion; readers take "
            "turns on each grid's clips; the least of all rounds counts; files and index are in the page cache",
            "versions": _versions(),
        }  # fmt: skip


def bench_feed(bench: FeedBench) -> FeedResult:
    """Measure all readers that work here.

    Raises:
        DataError: the videos cannot be used.
    """
    run = WORKLOADS[WORKLOAD]()
    plan = Plan.compile(dataclasses.replace(run.plan, spans=bench.spans), NUM_SAMPLES)
    deadline = time.monotonic() + bench.budget_s
    with tempfile.TemporaryDirectory(prefix="mgray-bench-") as folder, _one_thread():
        paths = pick_videos(bench.data, bench.videos) if bench.data else ()
        paths = paths or write_camera_videos(folder, bench.videos, gop=bench.gop)
        videos = store_videos(folder, paths, bench.levels, further=_FURTHER if bench.further else ())
        readers = make_readers(videos, bench.enlarge)
        cells = cells_of(plan, videos.infos, bench.clips, run)
        meters = [_Meter(cell, readers.by_name) for cell in cells]
        for meter in meters:
            meter.compare()
        rounds = 0
        while rounds < bench.rounds and (not rounds or time.monotonic() < deadline):
            for meter in meters:
                meter.turn()
            rounds += 1
        costs = tuple(meter.cost(videos, bench.enlarge) for meter in meters)
        pipelines = {}
        if bench.ray:
            from mgray.bench.pipeline import measure_pipelines

            pipelines = measure_pipelines(videos.shards, cells, bench.enlarge)
    return FeedResult(
        bench=bench,
        rounds=rounds,
        cells=costs,
        steps={name: step_cost(plan, costs, name) for name in readers.by_name},
        unavailable=readers.unavailable,
        videos=videos,
        pipelines=pipelines,
    )


def cells_of(plan: Plan, videos: Sequence[VideoInfo], count: int, run: Run) -> tuple[Cell, ...]:
    """The grids of a plan, coarse to fine, with `count` clips of each that are spread over its steps by their number of clips."""
    slots: dict[tuple[int, int, int], list[tuple[Phase, int]]] = {}
    for phase in plan.phases:
        for slot, batch in enumerate(phase.batches):
            slots.setdefault(_grid(batch), []).append((phase, slot))
    total = sum(phase.clips for phase in plan.phases)
    cells = []
    for (frames, height, width), where in sorted(slots.items()):
        clips = [phase.slot_steps[slot] * phase.batches[slot].clips for phase, slot in where]
        ends = np.cumsum(clips)
        specs = []
        for number in range(count):
            done = (number + 0.5) / count * ends[-1]
            place = int(np.searchsorted(ends, done, side="right"))
            phase, slot = where[place]
            step = _step_near(plan, phase, slot, 1 - (ends[place] - done) / clips[place])
            position = step.positions[number * _SCATTER % len(step.positions)]
            sample = number % len(videos)
            video, data = videos[sample], run.data
            specs.append(train_clip(step, position, sample, video, seed=run.train.seed, fps=data.fps, flip=data.flip))
        share = float(ends[-1]) / total
        cells.append(Cell(frames=frames, height=height, width=width, share=share, specs=tuple(specs)))
    return tuple(cells)


def step_cost(plan: Plan, cells: Sequence[CellCost], reader: str) -> StepCost:
    """What a reader spends on the global steps of a plan whose cells it was measured on."""
    seconds = {cell.name: cell.seconds[reader] for cell in cells}
    spent = [
        (steps, batch.clips * seconds[_cell_name(batch)])
        for phase in plan.phases
        for steps, batch in zip(phase.slot_steps, phase.batches, strict=True)
        if steps
    ]
    mean = sum(steps * cost for steps, cost in spent) / plan.num_steps
    return StepCost(mean=mean, worst=max(cost for _, cost in spent))


def _grid(batch: BatchShape) -> tuple[int, int, int]:
    return batch.frames, batch.height, batch.width


def _cell_name(batch: BatchShape) -> str:
    frames, height, width = _grid(batch)
    return Cell(frames=frames, height=height, width=width, share=0.0, specs=()).name


def _step_near(plan: Plan, phase: Phase, slot: int, share: float) -> Step:
    """A step of a slot, about that share into its phase."""
    last = phase.first_step + phase.num_steps - 1
    start = min(last, phase.first_step + int(share * phase.num_steps))
    around = sorted(range(phase.first_step, last + 1), key=lambda index: abs(index - start))[: 3 * len(phase.batches)]
    return next(step for step in map(plan.step_at, around) if step.slot == slot)


class _Meter:
    """Times all readers on the clips of a cell."""

    def __init__(self, cell: Cell, readers: Mapping[str, Reader]) -> None:
        self._cell, self._readers = cell, readers
        shape = (cell.frames, cell.height, cell.width, 3)
        self._clips: dict[str, Clip] = {name: np.zeros(shape, np.uint8) for name in readers}
        self._least = {name: np.full(len(cell.specs), np.inf) for name in readers}
        self._errors: dict[str, list[float]] = {name: [] for name in readers if name not in ("files", "copy")}

    def compare(self) -> None:
        """Read each clip with each reader, to see how like `files` they are."""
        for spec in self._cell.specs:
            for name, read in self._readers.items():
                read(spec, self._clips[name])
            for name, errors in self._errors.items():
                errors.append(squared_error(self._clips[name], self._clips["files"]))

    def turn(self) -> None:
        """Read all clips once with each reader, one reader after the other, as a decode worker reads them."""
        for name, read in self._readers.items():
            for number, spec in enumerate(self._cell.specs):
                started = time.process_time()
                read(spec, self._clips[name])
                self._least[name][number] = min(self._least[name][number], time.process_time() - started)

    def cost(self, videos: BenchVideos, enlarge: float) -> CellCost:
        cell, shards = self._cell, videos.shards
        levels = Counter(
            shards.manifest.levels[shards.level_for("train", spec.sample, spec.scale, enlarge)].name
            for spec in cell.specs
        )
        return CellCost(
            name=cell.name,
            frames=cell.frames,
            size=cell.height,
            share=cell.share,
            seconds={name: float(np.mean(least)) for name, least in self._least.items()},
            psnr_db={name: psnr(float(np.mean(errors))) for name, errors in self._errors.items()},
            levels={level.name: levels[level.name] for level in shards.manifest.levels},
        )


def squared_error(clip: Clip, other: Clip) -> float:
    return float(np.mean((clip.astype(np.float32) - other) ** 2))


def psnr(squared_error: float) -> float:
    return 100.0 if squared_error == 0 else float(10 * np.log10(255**2 / squared_error))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _short(value: float | None) -> float | None:
    """Four significant digits."""
    return None if value is None else float(f"{value:.4g}")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("av", "torch", "decord", "torchcodec"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
