"""What a pyramid costs in quality, measured on small videos."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mgray.bench.feed import psnr, squared_error
from mgray.bench.quality import bench_quality, quality_rows
from mgray.config import DataSection, Run
from mgray.plan import PlanSpec
from tests.support.videos import write_tree

RUN = Run(
    plan=PlanSpec(
        frames=4, crop=24, batch=8, stride=1, jitter_min=26, jitter_max=32, epochs=8, lr_steps=(0, 4), lr_factors=(1.0, 0.1),
        long_cycle="run", short_cycle=True, size_multiple=4, spans="kept",
    ),
    data=DataSection(levels=(32, 16)),
)  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tree(tmp_path_factory.mktemp("videos"), {"a": 3, "b": 3}))


def test_every_grid_is_compared_with_whole_frames(videos: str) -> None:
    found = bench_quality(videos, RUN, clips=6)
    assert {(row.frames, row.size) for row in found} == {
        (1, 12),
        (1, 16),
        (2, 12),
        (2, 16),
        (2, 24),
        (4, 12),
        (4, 16),
        (4, 24),
    }
    for row in found:
        assert row.clips == sum(row.levels.values()) == 6
        assert row.files_db > 26 and row.finest_db > 24 and row.shards_db > 20
        if row.levels == {"32": 6}:
            assert row.shards_db == row.finest_db
    smallest = next(row for row in found if row.size == 12)
    assert smallest.levels == {"16": 6} and smallest.shards_db < smallest.finest_db
    head, *rows = quality_rows(found)
    assert len(rows) == len(found) and all(len(row) == len(head) for row in rows)


def test_without_enlarging_a_coarse_level_is_taken_for_what_it_covers_only(videos: str) -> None:
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, enlarge=1.0))
    strict = {(row.frames, row.size): row for row in bench_quality(videos, run, clips=6)}
    assert strict[4, 24].levels == {"32": 6}
    assert strict[4, 12].levels.get("16", 0) <= 6 and strict[4, 16].levels == {"32": 6}


def test_psnr_is_that_of_the_mean_error() -> None:
    black, grey = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert squared_error(black, grey) == 51**2
    assert math.isclose(psnr(squared_error(black, grey)), 20 * math.log10(5))
    assert psnr(0.0) >= 100
