"""Timing: measured times, and the line between them."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mgray.errors import ConfigError
from mgray.plan import ClipShape, Timing
from mgray.plan.timing import Point

SMALL, LARGE = ClipShape(4, 16, 16), ClipShape(8, 32, 32)


@given(
    overhead=st.floats(0, 1),
    voxel=st.floats(1e-6, 1e-3),
    clips=st.lists(st.integers(1, 64), min_size=2, max_size=5, unique=True),
    other=st.integers(1, 200),
)
def test_a_line_is_found_again(overhead: float, voxel: float, clips: list[int], other: int) -> None:
    points = [Point(n, SMALL, overhead + voxel * n * SMALL.voxels) for n in clips]
    timing = Timing.fit(points, "made")
    assume(timing.is_identified)
    for shape in (SMALL, LARGE):
        expected = overhead + voxel * other * shape.voxels
        assert timing.seconds(other, shape) == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert timing.seconds(0, SMALL) == 0


def test_a_measured_shape_keeps_its_own_time() -> None:
    timing = Timing.fit([Point(2, SMALL, 1.0), Point(8, LARGE, 3.0), Point(4, LARGE, 9.0)], "made")
    assert timing.seconds(2, SMALL) == 1.0
    assert timing.seconds(8, LARGE) == 3.0
    assert timing.seconds(16, LARGE) > 3.0


@given(
    overhead=st.floats(0.001, 1),
    work=st.floats(0.001, 1),
    clips=st.integers(1, 64),
    other=st.integers(1, 64),
    shape=st.sampled_from((SMALL, LARGE)),
)
def test_steps_of_equal_voxels_bound_the_truth(
    overhead: float, work: float, clips: int, other: int, shape: ClipShape
) -> None:
    points = [Point(n * clips, s, overhead + work) for n, s in ((8, SMALL), (1, LARGE))]
    timing = Timing.fit(points, "made")
    assert not timing.is_identified
    ratio = other * shape.voxels / points[0].voxels
    ends = sorted(dataclasses.replace(timing, exponent=x).seconds(other, shape) for x in (0.0, 1.0))
    assert ends[0] * (1 - 1e-9) <= overhead + work * ratio <= ends[1] * (1 + 1e-9)
    assert timing.seconds(other, shape) == pytest.approx(math.sqrt(ends[0] * ends[1]))


def test_a_shape_measured_on_several_devices_lies_on_lines_between() -> None:
    points = [Point(8, LARGE, 1.0, workers=1), Point(4, LARGE, 0.6, workers=2), Point(2, SMALL, 0.3, workers=1)]
    timing = Timing.fit([*points, Point(2, SMALL, 0.5, workers=1)], "made")
    assert (timing.workers, timing.is_identified) == ((1, 2), True)
    assert [timing.seconds(n, LARGE) for n in (4, 6, 8)] == pytest.approx([0.6, 0.8, 1.0])
    assert timing.seconds(2, SMALL) == 0.4
    assert [timing.workers_at(n, LARGE) for n in (1, 4, 100)] == [2, 2, 1]
    twice = Timing.fit([Point(8, LARGE, 1.0, workers=1), Point(8, LARGE, 2.0, workers=2)], "made")
    assert [twice.seconds(8, LARGE, workers) for workers in (None, 1, 2)] == [1.0, 1.0, 2.0]


@given(
    seconds=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    clips=st.lists(st.integers(1, 64), min_size=6, max_size=6),
)
def test_no_fit_is_negative(seconds: list[float], clips: list[int]) -> None:
    timing = Timing.fit([Point(n, SMALL, s) for n, s in zip(clips, seconds, strict=False)], "drawn")
    assert timing.overhead_s >= 0 and timing.voxel_s >= 0
    assert all(
        math.isfinite(timing.seconds(n, shape)) and timing.seconds(n, shape) > 0
        for n in (1, 99)
        for shape in (SMALL, LARGE)
    )


def test_a_table_is_shared_out_over_its_workers() -> None:
    timing = Timing.of_table({"64x8x32x32": 1.0, "8x8x32x32": 0.25}, "table", workers=8)
    assert [point.clips for point in timing.points] == [8, 1]
    assert timing.seconds(8, LARGE) == 1.0
    assert Timing.of_table({"8x32x32": 0.5}, "clips").points == (Point(1, LARGE, 0.5),)
    assert timing.workers == (8,)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"64x8": 1.0}, "64x8"),
        ({}, "holds no time"),
        ({"1x8x32x32": 0.0}, "0.0"),
        ({"1x8x32x32": math.inf}, "inf"),
        ({"0x8x32x32": 1.0}, "whole clips"),
    ],
)
def test_a_bad_table_is_refused(table: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Timing.of_table(table, "table")


def test_a_rate_is_the_same_for_all_shapes() -> None:
    timing = Timing.of_rate(100.0, "given")
    assert timing.seconds(3, SMALL) == timing.seconds(3, LARGE) == pytest.approx(0.03)
    with pytest.raises(ConfigError, match="is no rate"):
        Timing.of_rate(0.0, "given")
