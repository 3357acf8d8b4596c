"""Times that the planner goes by, from files and from runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from mgray.bench.timing import measure_decode, read_decode_times, read_step_times
from mgray.config import Run
from mgray.errors import ConfigError, DataError
from mgray.plan import BatchShape, ClipShape, Cluster, Network, Plan, Timing, forecast
from mgray.plan.forecast import largest_share
from mgray.plan.overlap import pipelines
from tests.support.shards import write_shards
from tests.unit.report.writer import MULTIGRID, RunWriter


def visited(plan: Plan) -> set[BatchShape]:
    return {b for p in plan.phases for b, steps in zip(p.batches, p.slot_steps, strict=True) if steps}


def test_a_runs_records_are_step_times_without_their_wait(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", MULTIGRID, step_s=2.0)
    run.event(0, "start", "2 workers on cpu")
    run.steps(0, run.plan.num_steps)
    found = read_step_times([str(run.folder)])
    assert (found.timing.workers, found.device_cores) == ((2,), 1.0)
    assert {point.seconds for point in found.timing.points} == {1.5}
    batches = visited(run.plan)
    assert {(p.shape, p.clips) for p in found.timing.points} == {
        (b.clip, largest_share(b.clips, phase.bn_groups, 2)[0])
        for phase in run.plan.phases
        for b in phase.batches
        if b in batches
    }
    cluster = Cluster(gpus=2, step=found.timing, network=Network())
    assert forecast(run.plan, cluster, lambda _: 0.0).seconds == pytest.approx(1.5 * run.plan.num_steps)


def write_made_up(root: Path, name: str, workers: int, *, overhead: float, opening: float) -> RunWriter:
    """A run whose steps take a known overhead and work, and whose openings of pipelines a known time, the first of their steps."""
    run = RunWriter(root, name, dataclasses.replace(MULTIGRID, epochs=80, lr_steps=(0, 40, 60)))
    run.event(0, "start", f"{workers} workers on cuda:0")
    for phase in run.plan.phases:
        for pipeline in pipelines(range(phase.first_step, phase.first_step + phase.num_steps), 1):
            for index in pipeline:
                step = run.plan.step_at(index)
                share = largest_share(step.shape.clips, phase.bn_groups, workers)[0] * step.shape.clip.voxels
                run.step_s = overhead + 1e-6 * share
                if index == pipeline.start and index:
                    run.step_s += opening
                run.steps(index, index + 1)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps({**line, "wait_s": 0.0}) + "\n" for line in lines))
    return run


def test_runs_on_different_devices_tell_overhead_work_and_openings(tmp_path: Path) -> None:
    one, two = (write_made_up(tmp_path, str(n), n, overhead=0.05, opening=0.3) for n in (1, 2))
    found = read_step_times([str(one.folder), str(two.folder)])
    assert found.timing.is_identified and found.timing.workers == (1, 2)
    assert found.timing.overhead_s == pytest.approx(0.05, rel=1e-6)
    assert found.opening_s(None, math.inf, 1) == pytest.approx(0.3) == found.opening_s(None, math.inf, 2)
    four = write_made_up(tmp_path, "4", 4, overhead=0.05, opening=0.3)
    want = sum(json.loads(line).get("step_s", 0.0) for line in (four.folder / "metrics.jsonl").read_text().splitlines())
    cluster = Cluster(gpus=4, step=found.timing, network=Network(), opening_s=found.opening_s(None, math.inf, 4))
    assert forecast(four.plan, cluster, lambda _: 0.0).seconds == pytest.approx(
        want, rel=2e-3
    )  # phases differ in groups
    alone = read_step_times([str(one.folder)]).timing
    assert not alone.is_identified
    low, high = forecast(four.plan, dataclasses.replace(cluster, step=alone), lambda _: 0.0).seconds_range
    assert low < want < high


def test_what_decoding_takes_from_training_is_no_opening(tmp_path: Path) -> None:
    run = write_made_up(tmp_path, "run", 2, overhead=0.05, opening=0.3)
    (loss,) = read_step_times([str(run.folder)]).losses
    loss = dataclasses.replace(loss, device_cores=1.0)
    decode = Timing.of_rate(sum(loss.clips.values()), "one core second in all")
    assert loss.opening_s(decode, 2.0) == pytest.approx(0.3 - 0.5 / loss.openings)
    assert loss.opening_s(decode, math.inf) == pytest.approx(0.3)


def test_runs_of_different_models_do_not_go_together(tmp_path: Path) -> None:
    one, two = (write_made_up(tmp_path, str(n), n, overhead=0.05, opening=0.3) for n in (1, 2))
    tree = json.loads((two.folder / "run.json").read_text())
    (two.folder / "run.json").write_text(json.dumps({**tree, "model": {**tree["model"], "width": 8}}))
    with pytest.raises(ConfigError, match="is of another model"):
        read_step_times([str(one.folder), str(two.folder)])


def test_times_of_another_model_than_the_planned_are_refused(tmp_path: Path) -> None:
    run = write_made_up(tmp_path, "run", 1, overhead=0.05, opening=0.3)
    model = Run.from_json(json.loads((run.folder / "run.json").read_text())).model
    for same in (model, dataclasses.replace(model, dropout=0.1, init="weights.pt")):
        assert read_step_times([str(run.folder)], same).timing.workers == (1,)
    other = dataclasses.replace(model, depth=101)
    with pytest.raises(ConfigError, match=rf"is of another model \(model\.depth {model.depth} -> 101\)"):
        read_step_times([str(run.folder)], other)
    path = tmp_path / "steps.json"  # of mgray bench step
    tree = {"settings": dataclasses.asdict(model), "step_seconds": {"8x4x16x16": 0.5}}
    path.write_text(json.dumps(tree))
    assert read_step_times([str(path)], model).timing.workers == (1,)
    with pytest.raises(ConfigError, match="is of another model"):
        read_step_times([str(path)], other)
    path.write_text('{"8x4x16x16": 0.5}')  # does not say of which
    assert read_step_times([str(path)], other).timing.source.endswith("steps.json (one device)")


def test_a_run_that_says_nothing_is_refused(tmp_path: Path) -> None:
    run = RunWriter(tmp_path, "run", MULTIGRID)
    run.event(0, "start", "1 workers on cuda:0")
    with pytest.raises(ConfigError, match="has no step yet"):
        read_step_times([str(run.folder)])
    run.steps(0, 5)
    assert read_step_times([str(run.folder)]).device_cores == 0
    run.attempt = 1
    run.event(5, "resume", "2 workers on cuda:0")
    with pytest.raises(ConfigError, match="different numbers of workers"):
        read_step_times([str(run.folder)])
    with pytest.raises(DataError, match="is no run's folder"):
        read_step_times([str(tmp_path)])


def test_a_benchs_json_names_device_and_workers(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_text(
        json.dumps(
            {"device": "H100", "model": "slowfast", "workers": 2, "step_seconds": {"8x4x16x16": 0.5}, "shapes": []}
        )
    )
    timing = read_step_times([str(path)]).timing
    assert (timing.workers, timing.seconds(4, ClipShape(4, 16, 16))) == ((2,), 0.5)
    assert timing.source.endswith("(slowfast on 2 x H100)")
    path.write_text('{"8x4x16x16": 0.5}')
    assert read_step_times([str(path)]).timing.seconds(8, ClipShape(4, 16, 16)) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{",
        '{"8x4x16x16": "soon"}',
        '{"step_seconds": [1]}',
        '{"workers": "x", "step_seconds": {"8x4x16x16": 1}}',
        '{"workers": 0, "step_seconds": {"8x4x16x16": 1}}',
        '{"settings": 1, "step_seconds": {"8x4x16x16": 1}}',
    ],
)
def test_other_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"steps\.json"):
        read_step_times([str(path)])


@pytest.mark.parametrize(
    "cells", ["3", "[{}]", "[3]", '[{"frames": 8, "size": 112, "clips_per_s_per_core": 1}]', "{}", "null"]
)
def test_other_decode_rates_are_refused(cells: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(f'{{"cells": {cells}}}')
    with pytest.raises(ConfigError, match=r"rates\.json"):
        read_decode_times(str(path))


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
