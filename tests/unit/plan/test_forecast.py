"""Forecast: devices, decoding and network bound a schedule as arithmetic says."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgray.errors import ConfigError
from mgray.plan import ClipShape, Cluster, Network, Plan, PlanSpec, Timing, forecast, optimise
from mgray.plan.forecast import BUCKET_BYTES, on_workers
from mgray.plan.forecast_table import duration, forecast_table, si
from mgray.plan.optimise import GIVEN, finest_share
from mgray.plan.overlap import pipelines
from mgray.plan.state import Amendment, ScheduleState
from mgray.plan.timing import Point
from tests.unit.plan.specs import SPECS

SPEC = PlanSpec(batch=8, long_cycle="stage", short_cycle=True, epochs=20, lr_steps=(0, 10, 16), bn_group=2)
PLAN = Plan.compile(SPEC, 1000)
SILENT = Network()


def flops(shape: ClipShape) -> float:
    return 1000.0 * shape.voxels


def measured(voxel_s: float, overhead: float, *workers: int) -> Timing:
    """Times of every batch, on so many workers and on eight."""
    batches = [b for p in (*PLAN.phases, *PLAN.baseline().phases) for b in p.batches]
    shares = {(-(-b.clips // n), b.clip, n) for b in batches for n in (*(workers or (1,)), 8)}
    points = [
        Point(clips, shape, clips * shape.voxels * voxel_s + overhead, n) for clips, shape, n in sorted(shares, key=str)
    ]
    return Timing.fit(points, "table")


def test_time_for_voxels_alone_is_the_voxel_ratio() -> None:
    found = forecast(PLAN, Cluster(step=measured(1e-9, 0.0), network=SILENT), flops)
    assert found.seconds == pytest.approx(PLAN.voxels * 1e-9)
    assert found.speed_up == pytest.approx(PLAN.cost().voxel_ratio)
    assert (found.bound, found.extrapolated) == ("device", ())
    assert found.flops == pytest.approx(1000.0 * PLAN.voxels)


def test_time_by_the_step_alone_is_the_step_ratio() -> None:
    found = forecast(PLAN, Cluster(gpus=4, step=measured(1e-18, 0.5), network=SILENT), flops)
    assert found.speed_up == pytest.approx(PLAN.cost().step_ratio)
    assert [part.seconds for part in found.phases] == pytest.approx([p.num_steps / 2 for p in PLAN.phases], rel=1e-3)


def test_without_step_times_a_device_goes_by_its_rate() -> None:
    found = forecast(PLAN, Cluster(gpus=2, step=None, device_flops=1e9, network=SILENT), flops)
    assert found.seconds == pytest.approx(PLAN.voxels * 1000.0 / 1e9 / 2, rel=1e-4)  # a group more here and there
    assert "MODELLED" in "\n".join(forecast_table(PLAN.phases, found).totals)


def test_decoding_bounds_coarse_phases_first() -> None:
    # a base step of 8 clips a second of device time, and of 10 of decoding
    seconds = SPEC.batch * SPEC.frames * SPEC.crop**2
    cluster = Cluster(cores=10, step=measured(1 / seconds, 0.0), decode=Timing.of_rate(1.0, "given"), network=SILENT)
    found = forecast(PLAN, cluster, flops)
    first, last = found.phases[0], found.phases[-1]
    assert first.bound == found.bound == "decode"
    assert first.seconds == pytest.approx(PLAN.phases[0].clips / 9)  # a core is the rank's own
    assert first.cores is not None and first.cores == pytest.approx(first.clip_rate) and first.cores > 60
    (base,) = forecast(PLAN.baseline(), cluster, flops).phases
    assert base.bound == "device" and base.clip_rate == pytest.approx(8)
    assert base.frame_rate == pytest.approx(8 * 32) and base.source_frame_rate == pytest.approx(8 * 32 * 2)
    assert last.clip_rate > base.clip_rate  # the short cycle


def test_devices_that_are_cores_share_them_with_decoding() -> None:
    cluster = Cluster(
        gpus=2, cores=2, device_cores=1, step=measured(1e-6, 0.0), decode=Timing.of_rate(10.0, "given"), network=SILENT
    )
    found = forecast(PLAN, cluster, flops)
    decode_s = sum(phase.clips for phase in PLAN.phases) / 10
    assert found.seconds == pytest.approx((PLAN.voxels * 1e-6 + decode_s) / 2)
    assert found.bound == "cores"


def test_the_network_adds_what_the_backward_pass_does_not_hide() -> None:
    network = Network(gradient_bytes=100e6, bandwidth=1e9, latency_s=1e-3, node_gpus=1)
    assert network.all_reduce_s(100e6, 1) == 0
    assert network.all_reduce_s(100e6, 4) == pytest.approx(2 * 2 * 1e-3 + 6 * 0.025)
    last = network.all_reduce_s(BUCKET_BYTES, 4)
    assert network.exposed_s(10.0, 4, 1) == pytest.approx(last)
    assert network.exposed_s(0.03, 4, 1) == pytest.approx(0.154 - 0.02)
    norms = dataclasses.replace(network, norm_layers=10)
    assert norms.exposed_s(10.0, 4, 2) == pytest.approx(last + 2 * 10 * 2e-3)
    slow = Network(gradient_bytes=1e9, node_bandwidth=1e6)
    found = forecast(PLAN, Cluster(gpus=2, step=measured(1e-9, 0.0), network=slow), flops)
    assert found.bound == "network"


def test_latency_grows_by_levels_of_a_tree_within_nodes_and_between_them() -> None:
    network = Network(latency_s=20e-6, node_latency_s=5e-6, node_gpus=8)
    assert [network.hops(ranks) for ranks in (1, 2, 3, 8, 9, 16, 17, 128)] == [
        (0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 1), (3, 2), (3, 4)
    ]  # fmt: skip
    # some tens of microseconds on one node, not the 280 of a ring's 14 hops
    assert network.all_reduce_s(0.0, 8) == pytest.approx(30e-6)
    assert network.all_reduce_s(0.0, 128) == pytest.approx(2 * (3 * 5e-6 + 4 * 20e-6))
    assert network.all_reduce_s(1e9, 8) < 0.2 * network.all_reduce_s(1e9, 16)
    shown = forecast_table(PLAN.phases, forecast(PLAN, Cluster(gpus=8, step=None, network=network), flops)).totals
    assert any(line.startswith("network: MODELLED, not measured") for line in shown)


def test_batches_follow_the_workers_where_the_policy_says_so() -> None:
    plan = Plan.compile(dataclasses.replace(SPEC, batch_policy="per_worker"), 1000)
    cluster = Cluster(gpus=4, step=None, device_flops=1e9, network=SILENT)
    began = on_workers(plan, 4)
    assert began == ScheduleState(plan.digest(), (Amendment("workers", 0, 4),)).plan(plan)
    assert began.phases[0].batches[0].clips == 4 * plan.phases[0].batches[0].clips
    found = forecast(began, cluster, flops)
    assert found.phases[0].clips_per_gpu[0] == plan.phases[0].batches[0].clips
    alone = forecast(plan, dataclasses.replace(cluster, gpus=1), flops)
    assert found.speed_up == pytest.approx(alone.speed_up, rel=0.05)
    own, best, *_ = optimise(began, cluster, flops)
    assert own.plan == began and best.plan.phases[-1].batches[-1].clips == 4 * SPEC.batch
    assert on_workers(plan, 1) is plan
    assert on_workers(PLAN, 4) is PLAN


def test_measured_times_hold_their_own_network() -> None:
    network = Network(gradient_bytes=1e9, bandwidth=1e9)
    timing = measured(1e-9, 0.0, 2)
    same = forecast(PLAN, Cluster(gpus=2, step=timing, network=network), flops)
    assert [part.network_s for part in same.phases] == [0] * len(PLAN.phases)
    assert same.seconds == pytest.approx(PLAN.voxels * 1e-9 / 2)
    assert all(
        part.network_s > 0 for part in forecast(PLAN, Cluster(gpus=4, step=timing, network=network), flops).phases
    )


def test_pipelines_cost_what_their_openings_do() -> None:
    cluster = Cluster(step=measured(1e-9, 0.0), network=SILENT, opening_s=0.5, start_s=2.0)
    found, without = (
        forecast(PLAN, c, flops) for c in (cluster, dataclasses.replace(cluster, opening_s=0.0, start_s=0.0))
    )
    cuts = [
        len(list(pipelines(range(p.num_steps), 3 * max(b.voxels for b in p.batches)))) for p in PLAN.phases
    ]  # of 28 steps where blocks have 38 MB
    assert cuts[-1] == math.ceil(PLAN.phases[-1].num_steps / 27)
    assert found.seconds - without.seconds == pytest.approx(0.5 * (sum(cuts) - 1) + 2.0)
    assert found.phases[0].feed_s == pytest.approx(0.5 * (cuts[0] - 1) + 2.0)
    assert "costs 500 ms of training" in "\n".join(forecast_table(PLAN.phases, found).totals)


def test_steps_of_equal_voxels_give_a_range() -> None:
    batches = [b for p in (*PLAN.phases, *PLAN.baseline().phases) for b in p.batches]
    timing = Timing.of_table({str(batch): batch.voxels * 1e-9 for batch in batches}, "table")
    found = forecast(PLAN, Cluster(gpus=4, step=timing, network=SILENT), flops)
    low, high = found.seconds_range
    assert (low, high) == pytest.approx((PLAN.voxels * 1e-9 / 4, PLAN.voxels * 1e-9), rel=0.05)  # whole groups
    assert low < found.seconds < high
    assert "steps of about equal voxels" in "\n".join(forecast_table(PLAN.phases, found).totals)
    same = forecast(PLAN, Cluster(gpus=1, step=timing, network=SILENT), flops)
    assert same.seconds_range == pytest.approx((same.seconds, same.seconds))
    assert "about equal voxels" not in "\n".join(forecast_table(PLAN.phases, same).totals)


def test_more_devices_than_clips_are_named() -> None:
    found = forecast(PLAN, Cluster(gpus=128, step=measured(1e-9, 0.0), network=SILENT), flops)
    assert found.phases[-1].clips_per_gpu[-1] == 1
    assert "120 devices have no clip" in "\n".join(forecast_table(PLAN.phases, found).totals)


@given(spec=SPECS, gpus=st.integers(1, 9), cores=st.sampled_from((1.0, 7.0, math.inf)))
def test_parts_add_up(spec: PlanSpec, gpus: int, cores: float) -> None:
    plan = Plan.compile(spec, 50)
    found = forecast(
        plan,
        Cluster(
            gpus=gpus,
            cores=cores,
            step=None,
            decode=Timing.of_rate(100.0, "given"),
            network=Network(gradient_bytes=1e6),
        ),
        flops,
    )
    assert sum(part.seconds for part in found.phases) == pytest.approx(found.seconds)
    for phase, part in zip(plan.phases, found.phases, strict=True):
        assert part.clip_rate * part.busy_s == pytest.approx(phase.clips)
        assert part.cores is not None and part.cores * part.busy_s == pytest.approx(phase.clips / 100)
        for share, batch in zip(part.clips_per_gpu, phase.batches, strict=True):
            assert share >= batch.clips / gpus
    assert sum(part["seconds"] for part in found.to_json()["phases"]) == pytest.approx(found.seconds)


@pytest.mark.parametrize(("field", "value"), [("gpus", 0), ("cores", 0.0), ("device_cores", -1.0)])
def test_a_cluster_without_devices_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(Cluster(step=None, network=SILENT), **{field: value})


def test_table_fits_the_terminal() -> None:
    plan = Plan.compile(PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True), 240_436)
    shown = str(forecast_table(plan.phases, forecast(plan, Cluster(gpus=8, step=None, network=SILENT), flops)))
    rows = shown.split("\n\n")[0].splitlines()
    assert len(rows) == 14 and max(map(len, rows)) <= 120
    assert duration(3725) == "1 h 02 min" and duration(61) == "1 min 01 s" and duration(4.25) == "4.25 s"
    assert (si(0), si(1.2345e9), si(5.08e18)) == ("0 ", "1.23 G", "5.08 E")


def test_proposals_keep_to_the_constraints_and_are_sorted() -> None:
    plan = Plan.compile(PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True), 10_000)
    own, *found = optimise(plan, Cluster(step=None, network=SILENT), flops)
    assert own.plan == plan and len(found) == 5
    assert [p.forecast.seconds for p in found] == sorted(p.forecast.seconds for p in found)
    assert found[0].forecast.seconds < own.forecast.seconds
    for proposal in found:
        assert finest_share(proposal.plan) == proposal.finest_share >= 0.98 * own.finest_share
        assert abs(proposal.plan.num_epochs - plan.num_epochs) <= 1  # rounded at another place
        assert min(b.height for p in proposal.plan.phases for b in p.batches) >= 112
        assert proposal.plan.spec.long_factors[-1] == (1.0, 1.0)
        assert proposal.to_json()["seconds"] == proposal.forecast.seconds


def test_where_decoding_is_the_limit_proposals_are_no_slower_and_decode_less() -> None:
    plan = Plan.compile(PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True), 10_000)
    decode = Timing.of_table({"8x112x112": 0.01, "32x224x224": 0.03}, "made")
    bound = Cluster(cores=1, step=None, device_flops=1e15, decode=decode, network=SILENT)
    own, best, *_ = optimise(plan, bound, flops)
    assert own.forecast.bound == "decode"
    assert best.forecast.seconds <= own.forecast.seconds


@pytest.mark.parametrize("short", [False, True])
def test_a_plan_without_a_long_cycle_is_set_beside_the_papers_cycles(short: bool) -> None:
    plan = Plan.compile(PlanSpec(short_cycle=short), 10_000)
    own, papers, *found = optimise(plan, Cluster(step=None, network=SILENT), flops)
    assert [own.title, papers.title, found[0].title] == [*GIVEN, "proposal 1"]
    assert own.plan == plan and (own.forecast.speed_up == pytest.approx(1.0)) == (not short)
    assert papers.plan.spec.long_cycle == "stage" and papers.plan.spec.short_cycle
    assert all(p.finest_share >= 0.98 * papers.finest_share for p in found)


def test_a_narrow_table_has_fewer_columns_and_says_which() -> None:
    plan = Plan.compile(PlanSpec(epoch_factor=1.5, long_cycle="stage", short_cycle=True), 240_436)
    tables = (
        plan.table(),
        forecast_table(plan.phases, forecast(plan, Cluster(gpus=8, step=None, network=SILENT), flops)),
    )
    for table in tables:
        assert table.within(120) == table
        narrow = table.within(80)
        assert narrow.width <= 80 and {"phase", "frames", "crop"} <= set(narrow.head)
        left = [name for name in table.head if name not in narrow.head]
        assert narrow.totals[-1].startswith("a wider terminal shows ")
        assert all(name in narrow.totals[-1] for name in left)
        place = table.head.index("crop")
        assert [row[narrow.head.index("crop")] for row in narrow.rows] == [row[place] for row in table.rows]
