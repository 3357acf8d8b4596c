"""What the planner goes by: step and decode times from files, from a run's records, and measured on a run's shards."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgray.config import Run
from mgray.data.shard import ShardSet
from mgray.data.source import TrainSource
from mgray.errors import ConfigError
from mgray.plan import ClipShape, Plan
from mgray.plan.timing import Point, Timing
from mgray.report.records import read_run

DECODE_CLIPS = 48
"""Decoded of each shape to measure what one costs."""
BLOCK_CLIPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Measured step times, and how many CPU cores a worker was."""

    timing: Timing
    device_cores: float = 0.0


def read_step_times(source: str) -> StepTimes:
    """The step times of `source`: a run's folder, JSON of `mgray bench step`, or JSON `{"64x32x224x224": seconds}`.

    Of a run, the time that workers waited for clips is left out. On a GPU, whose kernels run on while the loop waits, that may be
    too much; `mgray bench step` measures there.

    Raises:
        ConfigError: it is none of these.
        DataError: the run's records cannot be read.
    """
    if Path(source).is_dir():
        return _of_run(Path(source))
    tree = _read_json("step_times", source, 'write {"64x32x224x224": 0.95, ...}')
    if "step_seconds" not in tree:
        return StepTimes(timing=Timing.of_table(_numbers("step_times", source, tree), source))
    workers = int(tree.get("workers", 1))
    label = f"{source} ({tree.get('model', '?')} on {workers} x {tree.get('device', '?')})"
    return StepTimes(timing=Timing.of_table(_numbers("step_times", source, tree["step_seconds"]), label, workers))


def _of_run(folder: Path) -> StepTimes:
    records = read_run(folder)
    steps = records.steps
    starts = [event.detail.split() for event in records.events if event.event in ("start", "resume")]
    if not len(steps) or not starts:
        raise ConfigError("step_times", str(folder), "has no step yet", "name a run that has trained")
    if len({words[0] for words in starts}) > 1:
        raise ConfigError("step_times", str(folder), "was trained by different numbers of workers", "name another run")
    workers = int(starts[-1][0])
    own_s = steps.step_s - steps.wait_s
    points = []
    for clips, frames, crop in sorted(
        set(zip(steps.clips.tolist(), steps.frames.tolist(), steps.crop.tolist(), strict=True))
    ):
        mine = (steps.clips == clips) & (steps.frames == frames) & (steps.crop == crop)
        # the mean: slow first steps and interruptions are part of what a run takes
        points.append(Point(-(-clips // workers), ClipShape(frames, crop, crop), float(own_s[mine].mean())))
    on_cpu = starts[-1][-1] == "cpu"
    label = f"{folder} ({workers} worker(s), {len(steps):,} steps without their data wait)"
    return StepTimes(timing=Timing.fit(points, label, workers), device_cores=records.run.scale.cpus if on_cpu else 0.0)


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
        tree = {f"{c['frames']}x{c['size']}x{c['size']}": c["clips_per_s_per_core"]["shards"] for c in tree["cells"]}
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
