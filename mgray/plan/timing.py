"""Times by clips and shape: measured, from a device rate, or on a straight line between what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mgray.errors import ConfigError
from mgray.plan.shape import BatchShape, ClipShape

_BATCH = re.compile(r"(?:(\d+)x)?(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, slots=True)
class Point:
    """So many clips of a shape took `seconds`."""

    clips: int
    shape: ClipShape
    seconds: float

    @property
    def voxels(self) -> int:
        return self.clips * self.shape.voxels


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds as a function of clips and shape.

    The overhead and the time for a voxel are a least-squares fit of relative errors over all points, neither below 0. A shape
    that was measured keeps its own time at the measured clips; at other clips only the part above the overhead scales.
    """

    points: tuple[Point, ...]
    overhead_s: float
    voxel_s: float
    source: str
    """Where the points come from, for people."""
    workers: int = 1
    """Devices that the measured batches were shared out over; `points` hold one device's share."""
    clip_s: float = 0.0
    """Seconds of a clip whatever its shape."""

    @classmethod
    def fit(cls, points: Iterable[Point], source: str, workers: int = 1) -> Timing:
        """The timing through these points.

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
        return cls(points, overhead, slope, source, workers)

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
            points.append(Point(-(-clips // workers), ClipShape(*shape), seconds))
        return cls.fit(points, source, workers)

    @classmethod
    def of_rate(cls, clips_per_s: float, source: str) -> Timing:
        """The timing of a rate in clips a second that is the same for all shapes.

        Raises:
            ConfigError: the rate is not positive.
        """
        if not (clips_per_s > 0 and math.isfinite(clips_per_s)):
            raise ConfigError("times", clips_per_s, f"is no rate ({source})", "give clips a second, above 0")
        return cls((), 0.0, 0.0, source, clip_s=1 / clips_per_s)

    def seconds(self, clips: int, shape: ClipShape) -> float:
        """Seconds for so many clips of a shape; 0 for none."""
        if not clips:
            return 0.0
        measured = [point for point in self.points if point.shape == shape]
        if not measured:
            return self.overhead_s + clips * (self.clip_s + self.voxel_s * shape.voxels)
        point = min(measured, key=lambda near: abs(math.log(near.clips / clips)))
        fixed = min(self.overhead_s, point.seconds)
        return fixed + (point.seconds - fixed) * clips / point.clips

    def is_measured(self, batch: BatchShape) -> bool:
        """Whether the batch's clip shape was measured."""
        return any(point.shape == batch.clip for point in self.points)


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
