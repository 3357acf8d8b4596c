"""Compiled training: one whole graph for each shape, compiled before it is needed, with the losses of eager training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from mgray.config import DataSection, ModelSection, TrainSection
from mgray.data.source import Block
from mgray.model import build_model
from mgray.model.dropout import convert_dropout
from mgray.model.norm import convert_batchnorm, defer_running_stats
from mgray.plan import BatchShape
from mgray.train import step as step_module
from mgray.train.compile import compile_model
from mgray.train.loop import channels_last
from mgray.train.optimizer import build_optimizer
from mgray.train.session import LocalSession
from mgray.train.step import Worker

MODEL = ModelSection(name="slowfast", depth=10, width=8, alpha=2, fusion_kernel=3, dropout=0.3)
TRAIN = TrainSection(compile=True)
SHAPES = ((BatchShape(8, 4, 16, 16), 2), (BatchShape(9, 2, 24, 24), 4), (BatchShape(4, 4, 24, 24), 1))
"""Batches and their BN groups: of equal sizes, of unequal ones, one alone."""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    counters.clear()


def small() -> nn.Module:
    layers = [
        nn.Conv3d(3, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(4, 5),
    ]
    return convert_batchnorm(nn.Sequential(*layers))


def worker(train: TrainSection, make: Callable[[], nn.Module] = small) -> Worker:
    torch.manual_seed(0)
    model = channels_last(convert_dropout(make()))
    defer_running_stats(model)
    return Worker(model.train(), LocalSession(Path("unused")), DataSection(), train)


def block(shape: BatchShape, seed: int) -> Block:
    rng = np.random.default_rng(seed)
    count = np.arange(shape.clips)
    pixels = rng.integers(0, 256, (shape.clips, shape.frames, shape.height, shape.width, 3), np.uint8)
    return Block(0, 0, pixels, count % 5, count, count)


def losses(ours: Worker, steps: int) -> list[float]:
    optimizer = build_optimizer(ours.module, TRAIN)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    found = []
    for step in range(steps):
        shape, groups = SHAPES[step % len(SHAPES)]
        keys = torch.arange(shape.clips) + 100 * step
        found.append(float(ours.step(block(shape, step), shape, groups, keys, optimizer)[0]) / shape.clips)
    return found


def test_one_whole_graph_a_shape_with_the_losses_of_eager_training() -> None:
    """Dropout and running statistics too; validation is eager and adds no graph."""
    ours = worker(TRAIN)
    before = {name: value.clone() for name, value in ours.module.state_dict().items()}
    for shape, groups in SHAPES:
        assert ours.warm_up(shape, groups)
    assert all(torch.equal(value, before[name]) for name, value in ours.module.state_dict().items())
    assert all(p.grad is None for p in ours.module.parameters())
    assert counters["stats"]["unique_graphs"] == len(SHAPES) and not counters["graph_break"]
    eager = worker(dataclasses.replace(TRAIN, compile=False))
    assert not eager.warm_up(*SHAPES[0])
    assert losses(ours, 9) == pytest.approx(losses(eager, 9), rel=1e-5)
    for (name, value), want in zip(ours.module.state_dict().items(), eager.module.state_dict().values(), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-5, msg=name)
    ours.module.eval()
    with torch.inference_mode():
        ours.predict(block(SHAPES[0][0], 0))
    assert counters["stats"]["unique_graphs"] == len(SHAPES)


def test_slowfast_is_one_graph_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """As traced, forward and backward, without making kernels of it, which takes minutes on a CPU."""
    monkeypatch.setattr(step_module, "compile_model", lambda model: compile_model(model, backend="aot_eager"))
    train = dataclasses.replace(TRAIN, mixup=0.5)
    ours = worker(train, lambda: build_model(MODEL, 5))
    for shape, groups in SHAPES:
        assert ours.warm_up(shape, groups)
    assert counters["stats"]["unique_graphs"] == len(SHAPES) and not counters["graph_break"]
    eager = worker(dataclasses.replace(train, compile=False), lambda: build_model(MODEL, 5))
    assert losses(ours, 4) == pytest.approx(losses(eager, 4), rel=1e-3)
    assert counters["stats"]["unique_graphs"] == len(SHAPES)
