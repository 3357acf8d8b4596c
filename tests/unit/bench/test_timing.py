"""Times that the planner goes by, from files and from runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgray.bench.timing import measure_decode, read_decode_times, read_step_times
from mgray.errors import ConfigError, DataError
from mgray.plan import BatchShape, ClipShape, Cluster, Network, Plan, forecast
from tests.support.shards import write_shards
from tests.unit.report.writer import MULTIGRID, RunWriter


def visited(plan: Plan) -> set[BatchShape]:
    return {b for p in plan.phases for b, steps in zip(p.batches, p.slot_steps, strict=True) if steps}


def test_a_runs_records_are_step_times_without_their_wait(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", MULTIGRID, step_s=2.0)
    run.event(0, "start", "2 workers on cpu")
    run.steps(0, run.plan.num_steps)
    found = read_step_times(str(run.folder))
    assert (found.timing.workers, found.device_cores) == (2, 1.0)
    assert {point.seconds for point in found.timing.points} == {1.5}
    batches = visited(run.plan)
    assert {(p.shape, p.clips) for p in found.timing.points} == {(b.clip, -(-b.clips // 2)) for b in batches}
    cluster = Cluster(gpus=2, step=found.timing, network=Network())
    assert forecast(run.plan, cluster, lambda _: 0.0).seconds == pytest.approx(1.5 * run.plan.num_steps)


def test_a_run_that_says_nothing_is_refused(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", MULTIGRID)
    run.event(0, "start", "1 workers on cuda:0")
    with pytest.raises(ConfigError, match="has no step yet"):
        read_step_times(str(run.folder))
    run.steps(0, 5)
    assert read_step_times(str(run.folder)).device_cores == 0
    run.attempt = 1
    run.event(5, "resume", "2 workers on cuda:0")
    with pytest.raises(ConfigError, match="different numbers of workers"):
        read_step_times(str(run.folder))
    with pytest.raises(DataError, match="is no run's folder"):
        read_step_times(str(tmp_path))


def test_a_benchs_json_names_device_and_workers(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_text(
        json.dumps(
            {"device": "H100", "model": "slowfast", "workers": 2, "step_seconds": {"8x4x16x16": 0.5}, "shapes": []}
        )
    )
    timing = read_step_times(str(path)).timing
    assert (timing.workers, timing.seconds(4, ClipShape(4, 16, 16))) == (2, 0.5)
    assert timing.source.endswith("(slowfast on 2 x H100)")
    path.write_text('{"8x4x16x16": 0.5}')
    assert read_step_times(str(path)).timing.seconds(8, ClipShape(4, 16, 16)) == 0.5


@pytest.mark.parametrize("text", ["[1]", "{", '{"8x4x16x16": "soon"}', '{"step_seconds": [1]}'])
def test_other_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"steps\.json"):
        read_step_times(str(path))


def test_decode_rates_come_as_number_table_or_benchmark(tmp_path: Path) -> None:
    assert read_decode_times("50").seconds(1, ClipShape(8, 112, 112)) == pytest.approx(0.02)
    path = tmp_path / "rates.json"
    path.write_text('{"8x112x112": 200, "32x224x224": 50}')
    assert read_decode_times(str(path)).seconds(1, ClipShape(32, 224, 224)) == pytest.approx(0.02)
    cell = {"frames": 8, "size": 112, "clips_per_s_per_core": {"pyav": 1.0, "shards": 250.0}}
    path.write_text(json.dumps({"cells": [cell]}))
    assert read_decode_times(str(path)).seconds(1, ClipShape(8, 112, 112)) == pytest.approx(0.004)


def test_a_runs_shards_are_decoded_to_measure(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", MULTIGRID)
    shards = write_shards(tmp_path)
    about = json.loads((run.folder / "data.json").read_text()) | {"shards": shards.root}
    (run.folder / "data.json").write_text(json.dumps(about))
    timing = measure_decode(run.folder)
    plan = Plan.compile(MULTIGRID, shards.num_samples("train"))
    assert {point.shape for point in timing.points} == {batch.clip for batch in visited(plan)}
    assert all(0 < point.seconds < 1 for point in timing.points)
