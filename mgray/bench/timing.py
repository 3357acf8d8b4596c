"""What the planner goes by: step and decode times from files, from a run's records, and measured on a run's shards."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mgray.config import ModelSection, Run
from mgray.data.shards.shard_set import ShardSet
from mgray.data.source import TrainSource
from mgray.errors import ConfigError
from mgray.plan import ClipShape, Plan
from mgray.plan.forecast import largest_share
from mgray.plan.overlap import Losses, opened_at, pipelines
from mgray.plan.timing import Point, Timing
from mgray.report.records import RunRecords, read_run

DECODE_CLIPS = 48
"""Decoded of each shape to measure what one costs."""
BLOCK_CLIPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Measured step times, how many CPU cores a worker was, and what runs took beyond their undisturbed steps."""

    timing: Timing
    device_cores: float = 0.0
    losses: tuple[Losses, ...] = ()

    def opening_s(self, decode: Timing | None, cores: float, workers: int) -> float:
        """Seconds of training that the opening of a pipeline costs: the mean of the runs, if there are such of those on `workers`."""
        return _mean([loss.opening_s(decode, cores) for loss in self._of(workers)])

    def start_s(self, workers: int) -> float:
        """What a first step took beyond others, likewise."""
        return _mean([loss.start_s for loss in self._of(workers)])

    def _of(self, workers: int) -> list[Losses]:
        return [loss for loss in self.losses if loss.workers == workers] or list(self.losses)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def read_step_times(sources: Sequence[str], model: ModelSection | None = None) -> StepTimes:
    """The step times of `sources`: runs' folders, JSON of `mgray bench step`, JSON `{"64x32x224x224": seconds}` of one device or
    `{"workers": 8, "step_seconds": {...}}`.

    Of a run, a shape takes the median of the steps that no opening of a pipeline disturbs, without the time that workers waited
    for clips. On a GPU, whose kernels run on while the loop waits, that may be too little; `mgray bench step` measures there.

    Args:
        model: that the times are to be of, where a source says which it was; None for any, the same of all.

    Raises:
        ConfigError: one is none of these, or of another model.
        DataError: a run's records cannot be read.
    """
    found = [_of_run(Path(source)) if Path(source).is_dir() else _of_file(source) for source in sources]
    first = None if model is None else _timed_fields(dataclasses.asdict(model))
    for source, (_, fields) in zip(sources, found, strict=True):
        first = first or fields
        if fields and first and (differ := [name for name in fields if fields[name] != first.get(name)]):
            raise ConfigError(
                "step_times", source, f"is of another model ({', '.join(f'{name} {fields[name]} -> {first.get(name)}' for name in differ)})",
                "name a run of this model, or give its --model.* options",
            )  # fmt: skip
    parts = [part for part, _ in found]
    return StepTimes(
        timing=Timing.fit((p for part in parts for p in part.timing.points), "; ".join(p.timing.source for p in parts)),
        device_cores=max(part.device_cores for part in parts),
        losses=tuple(loss for part in parts for loss in part.losses),
    )


def _timed_fields(model: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model that its times depend on."""
    return {f"model.{name}": value for name, value in model.items() if name not in ("init", "dropout")}


def _of_file(source: str) -> tuple[StepTimes, dict[str, Any]]:
    """Its step times, and the settings of its model (of times by batch alone none)."""
    tree = _read_json("step_times", source, 'write {"64x32x224x224": 0.95, ...}')
    if "step_seconds" not in tree:
        return StepTimes(timing=Timing.of_table(_numbers("step_times", source, tree), f"{source} (one device)")), {}
    workers, settings = tree.get("workers", 1), tree.get("settings", {})
    if not isinstance(workers, int) or workers < 1:
        raise ConfigError("step_times", source, f"holds no number of workers ({workers!r})", 'write e.g. "workers": 8')
    if not isinstance(settings, dict):
        raise ConfigError("step_times", source, "holds no settings of a model", "measure again with mgray bench step")
    label = f"{source} ({tree.get('model', '?')} on {workers} x {tree.get('device', '?')})"
    timing = Timing.of_table(_numbers("step_times", source, tree["step_seconds"]), label, workers)
    return StepTimes(timing=timing), _timed_fields(settings)


def _of_run(folder: Path) -> tuple[StepTimes, dict[str, Any]]:
    """Its step times, and the settings of its model."""
    records = read_run(folder)
    steps = records.steps
    starts = [event for event in records.events if event.event in ("start", "resume")]
    if not len(steps) or not starts:
        raise ConfigError("step_times", str(folder), "has no step yet", "name a run that has trained")
    words = [event.detail.split() for event in starts]
    if len({of[0] for of in words}) > 1:
        raise ConfigError("step_times", str(folder), "was trained by different numbers of workers", "name another run")
    workers, device_cores = int(words[-1][0]), records.run.scale.cpus if words[-1][-1] == "cpu" else 0.0
    begins, is_steady = _pipelines(records, workers, {event.step for event in starts})
    own_s = steps.step_s - steps.wait_s
    steady_s = np.zeros(len(steps))
    points, clips = [], Counter[ClipShape]()
    for count, frames, crop in set(zip(steps.clips.tolist(), steps.frames.tolist(), steps.crop.tolist(), strict=True)):
        mine = (steps.clips == count) & (steps.frames == frames) & (steps.crop == crop)
        chosen = mine & is_steady if (mine & is_steady).any() else mine
        shape, seconds = ClipShape(frames, crop, crop), float(np.median(own_s[chosen]))
        steady_s[mine] = seconds
        clips[shape] += count * int(mine.sum())
        groups = int(records.plan["phases"][int(steps.phase[mine][0])]["bn_groups"])
        points.append(Point(largest_share(count, groups, workers)[0], shape, seconds, workers))
    start_s = max(0.0, float(own_s[0] - steady_s[0]))
    losses = Losses(
        workers=workers,
        device_cores=device_cores,
        steady_s=float(steady_s.sum()),
        lost_s=float((own_s - steady_s).sum() + steps.wait_s[begins].sum()) - start_s,
        start_s=start_s,
        openings=len(begins),
        clips=clips,
    )
    timing = Timing.fit(points, f"{folder} ({workers} worker(s), {len(steps):,} steps)")
    found = StepTimes(timing=timing, device_cores=device_cores, losses=(losses,))
    return found, _timed_fields(dataclasses.asdict(records.run.model))


def _pipelines(records: RunRecords, workers: int, starts: set[int]) -> tuple[list[int], npt.NDArray[np.bool_]]:
    """Which of a run's steps are first in a pipeline that was opened while it trained, and which no opening disturbs."""
    steps, feed = records.steps, records.run.feed
    place = {step: index for index, step in enumerate(steps.step.tolist())}
    cuts = sorted({int(phase["first_step"]) for phase in records.plan["phases"]} | starts | {max(place) + 1})
    begins, is_steady = [], np.zeros(len(steps), bool)
    for first, stop in itertools.pairwise(cuts):
        inside = [place[step] for step in range(first, stop) if step in place]
        if not inside:
            continue
        block_bytes = 3 * int((steps.voxels[inside] // workers).max())
        for pipeline in pipelines(range(first, stop), block_bytes, feed.ahead, int(feed.ahead_gib * 2**30)):
            if pipeline.start in place and pipeline.start not in starts:
                begins.append(place[pipeline.start])
            undisturbed = range(pipeline.start + 1, opened_at(pipeline))
            is_steady[[place[step] for step in undisturbed if step in place]] = True
    return begins, is_steady


def read_decode_times(source: str) -> Timing:
    """Core seconds to decode a clip: from a number (clips a second and core), JSON `{"32x224x224": clips a second and core}`, JSON of
    `mgray bench feed`, or a run's folder, of whose shards some clips of each shape are decoded now.

    Raises:
        ConfigError: it is none of these.
        DataError: the run or its shards cannot be read.
    """
    try:
        return Timing.of_rate(float(source), f"{float(source):g} clips/s and core, whatever the shape")
    except ValueError:
        pass
    if Path(source).is_dir():
        return measure_decode(Path(source))
    tree = _read_json("decode_rate", source, 'write a number, or {"32x224x224": 80.0, ...}')
    if "cells" in tree:
        try:
            cells = tree["cells"]
            tree = {f"{c['frames']}x{c['size']}x{c['size']}": c["clips_per_s_per_core"]["shards"] for c in cells}
        except (KeyError, TypeError):
            raise ConfigError(
                "decode_rate", source, "has cells without frames, size and clips_per_s_per_core", "write it with mgray bench feed --json"
            ) from None  # fmt: skip
    rates = _numbers("decode_rate", source, tree)
    return Timing.of_table({key: 1 / rate if rate else math.inf for key, rate in rates.items()}, source)


def measure_decode(folder: Path) -> Timing:
    """Core seconds to decode a clip of each shape of a run's schedule, from its shards, on this machine.

    Raises:
        DataError: the run or its shards cannot be read.
    """
    records = read_run(folder)
    run: Run = records.run
    shards = ShardSet.open(json.loads((folder / "data.json").read_text())["shards"])
    plan = Plan.compile(run.plan, shards.num_samples("train"))
    data = run.data
    source = TrainSource(
        shards,
        plan,
        run.train.seed,
        data.fps,
        data.flip,
        enlarge=data.enlarge,
        sampling=data.sampling,
        jitter=data.jitter,
    )
    steps: dict[ClipShape, list[int]] = {}
    for phase in plan.phases:
        for index in range(phase.first_step, phase.first_step + min(phase.num_steps, 8 * len(phase.batches))):
            steps.setdefault(plan.step_at(index).shape.clip, []).append(index)
    points = []
    for shape, indices in steps.items():
        source.block(indices[0], 0, max(1, plan.step_at(indices[0]).shape.clips // BLOCK_CLIPS))  # opens files
        clips, started = 0, time.process_time()
        for index in indices:
            block = source.block(index, 0, max(1, plan.step_at(index).shape.clips // BLOCK_CLIPS))
            clips += 0 if block is None else len(block.positions_N)
            if clips >= DECODE_CLIPS:
                break
        points.append(Point(1, shape, max(time.process_time() - started, 1e-9) / max(1, clips)))
    return Timing.fit(points, f"measured now on the shards of {folder}")


def _read_json(name: str, source: str, remedy: str) -> dict[str, Any]:
    try:
        tree = json.loads(Path(source).read_text())
    except OSError as error:
        raise ConfigError(name, source, f"cannot be read ({error.strerror})", "name a JSON file or a run") from None
    except ValueError:
        raise ConfigError(name, source, "is no JSON", remedy) from None
    if not isinstance(tree, dict):
        raise ConfigError(name, source, "is no JSON of batches and numbers", remedy)
    return tree


def _numbers(name: str, source: str, tree: Any) -> dict[str, float]:
    try:
        return {str(key): float(value) for key, value in tree.items()}
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(
            name, source, "is no JSON of batches and numbers", 'write e.g. {"64x32x224x224": 0.95, ...}'
        ) from None
