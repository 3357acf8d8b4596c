"""Times by clips and shape: measured, from a device rate, or on a straight line between what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mgray.errors import ConfigError
from mgray.plan.shape import BatchShape, ClipShape

SPREAD = 1.5
"""The largest measured share has at least so many times the voxels of the smallest where overhead can be told from work."""
_BATCH = re.compile(r"(?:(\d+)x)?(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, slots=True)
class Point:
    """So many clips of a shape took `seconds`."""

    clips: int
    shape: ClipShape
    seconds: float
    workers: int = 1
    """Devices that the batch was shared out over; `clips` are one device's."""

    @property
    def voxels(self) -> int:
        return self.clips * self.shape.voxels


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds as a function of clips and shape.

    The overhead and the time for a voxel are a least-squares fit of relative errors over all points, neither below 0. A shape
    that was measured keeps its own times, on straight lines between them; beyond them only the part above the overhead scales.

    Steps of a multigrid schedule have about equal voxels, of which no fit tells overhead from work (`is_identified`). Then
    a share of x times the voxels takes x to the power of `exponent` times as long: between 0, all is overhead, and 1, none is,
    a half is the geometric mean, whose largest error is least.
    """

    points: tuple[Point, ...]
    overhead_s: float
    voxel_s: float
    source: str
    """Where the points come from, for people."""
    clip_s: float = 0.0
    """Seconds of a clip whatever its shape."""
    exponent: float = 0.5

    @property
    def workers(self) -> tuple[int, ...]:
        """Numbers of devices that measured batches were shared out over."""
        return tuple(sorted({point.workers for point in self.points})) or (1,)

    @property
    def is_identified(self) -> bool:
        """Whether the points tell overhead from work."""
        voxels = [point.voxels for point in self.points]
        return not voxels or max(voxels) >= SPREAD * min(voxels)

    @classmethod
    def fit(cls, points: Iterable[Point], source: str) -> Timing:
        """The timing through these points; those of the same clips, shape and devices count as their mean.

        Raises:
            ConfigError: there is none, or one with a time or a number of clips that is not positive.
        """
        points = tuple(points)
        if not points:
            raise ConfigError("times", source, "holds no time", "measure at least one batch of the schedule")
        for point in points:
            if not (point.seconds > 0 and math.isfinite(point.seconds) and point.voxels):
                raise ConfigError(
                    "times", point.seconds, f"is no time ({source})", "give positive seconds of whole clips"
                )
        same: dict[tuple[int, ClipShape, int], list[float]] = {}
        for point in points:
            same.setdefault((point.clips, point.shape, point.workers), []).append(point.seconds)
        points = tuple(
            Point(clips, shape, sum(seconds) / len(seconds), workers)
            for (clips, shape, workers), seconds in same.items()
        )
        # rows (1/t, v/t), right side 1: relative errors, so that short steps count as much as long ones
        ones = [1 / point.seconds for point in points]
        sizes = [point.voxels / point.seconds for point in points]
        a11, a12, a22 = _dot(ones, ones), _dot(ones, sizes), _dot(sizes, sizes)
        determinant = a11 * a22 - a12 * a12
        overhead, slope = 0.0, sum(sizes) / a22
        if determinant > 1e-9 * a11 * a22:
            overhead = (a22 * sum(ones) - a12 * sum(sizes)) / determinant
            slope = (a11 * sum(sizes) - a12 * sum(ones)) / determinant
            if overhead < 0:
                overhead, slope = 0.0, sum(sizes) / a22
            elif slope < 0:
                overhead, slope = sum(ones) / a11, 0.0
        return cls(points, overhead, slope, source)

    @classmethod
    def of_table(cls, table: Mapping[str, float], source: str, workers: int = 1) -> Timing:
        """The timing of a table `{clips x frames x height x width: seconds}`, clips over all workers (1 where left out).

        Raises:
            ConfigError: a key that is no batch, or a time that is not positive.
        """
        points = []
        for key, seconds in table.items():
            match = _BATCH.fullmatch(key)
            if match is None:
                raise ConfigError("times", key, f"is no batch ({source})", "write e.g. 64x32x224x224")
            clips, *shape = (int(value or 1) for value in match.groups())
            points.append(Point(-(-clips // workers), ClipShape(*shape), seconds, workers))
        return cls.fit(points, source)

    @classmethod
    def of_rate(cls, clips_per_s: float, source: str) -> Timing:
        """The timing of a rate in clips a second that is the same for all shapes.

        Raises:
            ConfigError: the rate is not positive.
        """
        if not (clips_per_s > 0 and math.isfinite(clips_per_s)):
            raise ConfigError("times", clips_per_s, f"is no rate ({source})", "give clips a second, above 0")
        return cls((), 0.0, 0.0, source, clip_s=1 / clips_per_s)

    def seconds(self, clips: int, shape: ClipShape, workers: int | None = None) -> float:
        """Seconds for so many clips of a shape, 0 for none; times that were measured on `workers` devices come first."""
        if not clips:
            return 0.0
        if not self.points:
            return self.overhead_s + clips * (self.clip_s + self.voxel_s * shape.voxels)
        measured = sorted((p for p in self.points if p.shape == shape), key=lambda p: (p.clips, p.workers != workers))
        exact = next((p for p in measured if p.clips == clips), None)
        if exact is not None:
            return exact.seconds
        if not self.is_identified:
            voxels = clips * shape.voxels
            near = min(measured or self.points, key=lambda p: abs(math.log(p.voxels / voxels)))
            return float(near.seconds * (voxels / near.voxels) ** self.exponent)
        below = [p for p in measured if p.clips < clips]
        above = [p for p in measured if p.clips > clips]
        if below and above:
            low, high = below[-1], above[0]
            return low.seconds + (high.seconds - low.seconds) * (clips - low.clips) / (high.clips - low.clips)
        if not measured:
            return self.overhead_s + clips * self.voxel_s * shape.voxels
        near = below[-1] if below else above[0]
        fixed = min(self.overhead_s, near.seconds)
        return fixed + (near.seconds - fixed) * clips / near.clips

    def workers_at(self, clips: int, shape: ClipShape) -> int:
        """Devices on which the nearest measured share of a shape was trained; 1 where there is none."""
        measured = [point for point in self.points if point.shape == shape] or self.points
        return min(measured, key=lambda p: abs(math.log(p.clips / clips))).workers if measured and clips else 1

    def is_measured(self, batch: BatchShape) -> bool:
        """Whether the batch's clip shape was measured."""
        return any(point.shape == batch.clip for point in self.points)


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
