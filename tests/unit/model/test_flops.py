"""Operations of a clip in training."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mgray.config import ModelSection
from mgray.model.flops import CLASSES, COSTS, ModelCost, costs_of, counted
from mgray.plan import ClipShape
from tests.support.networks import undrawn
from workloads import WORKLOADS


def test_training_takes_three_times_the_published_forward_pass() -> None:
    # SlowFast R50 8x8: 65.7 G multiply-adds a 32x256x256 clip; the first layers need no gradient of their input
    cost = ModelCost(ModelSection(), 400)
    assert cost.parameters / 1e6 == pytest.approx(34.57, abs=0.01)
    assert cost.norm_layers == 110
    flops = cost.clip_flops(ClipShape(32, 256, 256))
    assert 2.9 * 2 * 65.71e9 < flops < 3 * 2 * 65.71e9
    assert cost.clip_flops(ClipShape(32, 256, 256)) == flops


@pytest.mark.parametrize("name", ["slowfast", "i3d", "r2plus1d_18", "mvit_v2_s"])
def test_what_is_left_out_of_the_network_has_no_operations(name: str) -> None:
    """Against the whole network on a CPU, which is faster than on meta tensors where clips are small."""
    section = ModelSection(name=name, depth=18 if name in ("slowfast", "i3d") else 50)
    model = undrawn(section, 400).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 8, 32, 32)).sum().backward()
    assert ModelCost(section, 400).count(ClipShape(8, 32, 32)) == counter.get_total_flops() / 2


def test_the_costs_that_are_shipped_are_those_of_the_workloads() -> None:
    shipped = json.loads(COSTS.read_text())
    wanted = costs_of(build() for build in WORKLOADS.values())
    assert len(shipped) == len(wanted)
    for entry, (cost, shapes) in zip(shipped, wanted, strict=True):
        assert len(entry["flops"]) == len(shapes)
        smallest = min(shapes, key=lambda shape: shape.voxels)
        now = counted(cost, [smallest])
        assert now["flops"].items() <= entry["flops"].items()
        assert {**now, "flops": entry["flops"]} == entry


def test_a_plan_counts_nothing_that_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    run = WORKLOADS["kinetics400_slowfast_r50"]()
    monkeypatch.setattr(ModelCost, "count", None)
    ((_, shapes),) = costs_of([run])
    cost, started = ModelCost(run.model, CLASSES), time.process_time()
    assert all(cost.clip_flops(shape) > 0 for shape in shapes) and (cost.parameters, cost.norm_layers) == (
        34_566_488,
        110,
    )
    assert time.process_time() - started < 0.5
    assert "model" not in vars(cost)
