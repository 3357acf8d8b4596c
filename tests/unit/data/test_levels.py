import dataclasses

import pytest

from mgray.data.levels import levels_of
from mgray.plan import PlanSpec
from tests.support.shards import write_shards
from workloads import WORKLOADS

KINETICS = WORKLOADS["kinetics400_slowfast_r50"]().plan


def test_the_paper_s_schedule_has_a_level_for_each_crop():
    assert levels_of(KINETICS, 1.25) == (320, 180, 128)
    assert levels_of(dataclasses.replace(KINETICS, spans="kept"), 1.25) == (320, 180, 128)
    assert levels_of(KINETICS, 1.0) == levels_of(dataclasses.replace(KINETICS, spans="kept"), 1.0) == (320, 226, 160)


def test_a_baseline_has_one_level():
    assert levels_of(PlanSpec(), 1.25) == (PlanSpec().jitter_max,)


def test_the_finest_level_is_the_one_that_the_workload_stores():
    run = WORKLOADS["demo"]()
    assert levels_of(run.plan, run.data.enlarge) == (72, 54)
    assert run.data.levels == WORKLOADS["demo_baseline"]().data.levels == (72,)


@pytest.mark.parametrize(
    ("scale", "enlarge", "level"),
    [(1.0, 1.0, 0), (0.76, 1.0, 0), (0.75, 1.0, 1), (0.51, 1.0, 1), (0.5, 1.0, 2), (0.1, 1.0, 2), (0.62, 1.25, 2), (0.95, 1.25, 0), (0.93, 1.25, 1)],
)  # fmt: skip
def test_the_coarsest_level_that_covers_the_window(tmp_path, scale, enlarge, level):
    shards = write_shards(tmp_path, train=1, val=1, levels=(32, 24, 16))
    assert shards.level_for("train", 0, scale, enlarge) == level
    video = shards.video("train", 0, level)
    assert (video.width, video.height) == ((40, 32), (30, 24), (20, 16))[level]


def test_a_video_no_larger_than_a_level_is_stored_once(tmp_path):
    shards = write_shards(tmp_path, train=1, val=1, levels=(64, 48, 16))
    assert [level["videos"] for level in shards.summary()["levels"]] == [2, 0, 2]
    assert shards.level_for("train", 0, 0.9, 1.0) == 0
    assert shards.level_for("train", 0, 0.5, 1.0) == 2
    assert (shards.video("train", 0, 1).width, shards.video("train", 0, 2).width) == (40, 20)
