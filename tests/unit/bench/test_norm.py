"""The bench of grouped batch norm measures what training computes, and says whether the goal is met."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mgray.bench import norm
from mgray.bench.norm import GOAL, GROUP, LAYOUTS, SHAPES, NormTime, measure
from mgray.cli.main import main


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "SHAPES", {"cpu": ((16, 3, 2, 4, 4), (8, 2, 1, 3, 3))})
    monkeypatch.setattr(norm, "TURN_S", 0.0)


def test_each_tensor_in_each_layout(small: None) -> None:
    result = measure("cpu", 2)
    grouped, spanning = result.rows[:4], result.rows[4:]
    assert [(row.shape, row.layout) for row in grouped] == [
        (shape, layout) for shape in norm.SHAPES["cpu"] for layout in LAYOUTS
    ]
    assert [row.groups for row in grouped] == [2, 2, 1, 1] and result.rounds == 2
    assert [(row.shape, row.layout) for row in spanning] == [
        ((GROUP, *shape[1:]), layout) for shape in norm.SHAPES["cpu"] for layout in LAYOUTS
    ]
    assert [row.spanning for row in result.rows] == [False] * 4 + [True] * 4
    assert all(row.seconds > 0 and row.plain_seconds > 0 and row.ratio > 0 for row in result.rows)
    assert result.table().row_count == 8


def test_json_and_bad_values(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "norm", "--device", "cpu", "--rounds", "1", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["goal"] == GOAL and tree["clips_of_group"] == GROUP and len(tree["tensors"]) == 8
    for row in tree["tensors"]:
        assert row["ratio"] == pytest.approx(row["ms"] / row["plain_ms"])  # of a single round
        assert row["met"] == (row["ratio"] <= GOAL) and row["mb"] == math.prod(row["shape"]) * 4 / 1e6
    assert main(["bench", "norm", "--device", "cpu", "--rounds", "1"]) == 0
    assert "of 8 meet it" in capsys.readouterr().out
    assert main(["bench", "norm", "--rounds", "0"]) == 2
    assert "rounds = 0: must be at least 1" in capsys.readouterr().err


def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "norm", "--device", "cuda"]) == 2
    assert "device = 'cuda': is not here" in capsys.readouterr().err


def test_both_pass_the_same_tensor_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[type[torch.nn.Module], int, torch.Tensor]] = []

    def passed(module: torch.nn.BatchNorm3d, x: torch.Tensor, grad_output: torch.Tensor) -> None:
        seen.append((type(module), x.data_ptr(), grad_output))
        output = module(x)
        assert output.requires_grad and output.is_contiguous(memory_format=torch.channels_last_3d)

    monkeypatch.setattr(norm, "_pass", passed)
    monkeypatch.setattr(norm, "TURN_S", 0.0)
    row = norm._measured((24, 3, 2, 4, 4), "channels last", "float32", torch.device("cpu"), 3)
    kinds = {kind.__name__ for kind, _, _ in seen}
    assert kinds == {"GroupedBatchNorm3d", "BatchNorm3d"} and len({at for _, at, _ in seen}) == 1 and row.groups == 3


def test_what_is_measured_covers_the_cache_and_more() -> None:
    megabytes = {
        device: [
            NormTime(shape=shape, layout="contiguous", precision="float32", groups=1, spanning=False, seconds=1.0, plain_seconds=1.0, ratio=1.0).bytes / 1e6
            for shape in shapes
        ]
        for device, shapes in SHAPES.items()
    }  # fmt: skip
    assert min(megabytes["cpu"]) < 1 and 50 < max(megabytes["cpu"]) < 55 and max(megabytes["cuda"]) > 400
    assert all(shape[0] % GROUP == 0 for shapes in SHAPES.values() for shape in shapes)
