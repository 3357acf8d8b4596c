"""Compiled training: one whole graph for each shape, compiled before it is needed, with the losses of eager training."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from mgray.config import DataSection, ModelSection, TrainSection
from mgray.data.source import Block
from mgray.model import build_model
from mgray.model.dropout import convert_dropout
from mgray.model.norm import convert_batchnorm, defer_running_stats
from mgray.plan import BatchShape, share_of
from mgray.train import step as step_module
from mgray.train.compile import channels_last, compile_model, keep_graphs
from mgray.train.optimizer import build_optimizer
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.support.processes import run_together
from tests.support.ranks import GlooSession
from tests.support.shards import write_shards
from tests.unit.train.test_loop import RUN, check_going_on, exact

MODEL = ModelSection(name="slowfast", depth=10, width=8, alpha=2, fusion_kernel=3, dropout=0.3)
TRAIN = TrainSection(compile=True)
SHAPES = ((BatchShape(8, 4, 16, 16), 2), (BatchShape(9, 2, 24, 24), 4), (BatchShape(4, 4, 24, 24), 1))
"""Batches and their BN groups: of equal sizes, of unequal ones, one alone."""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what was there comes back
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    keep_graphs(tmp_path / "compiled")
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


def worker(train: TrainSection, make: Callable[[], nn.Module] = small, session: LocalSession | None = None) -> Worker:
    torch.manual_seed(0)
    model = channels_last(convert_dropout(make()))
    defer_running_stats(model)
    session = session or LocalSession(Path("unused"))
    return Worker(session.prepare(model).train(), session, DataSection(), train)


def block(shape: BatchShape, seed: int) -> Block:
    rng = np.random.default_rng(seed)
    count = np.arange(shape.clips)
    pixels = rng.integers(0, 256, (shape.clips, shape.frames, shape.height, shape.width, 3), np.uint8)
    return Block(0, 0, pixels, count % 5, count, count)


def losses(ours: Worker, steps: int, shapes: Sequence[tuple[BatchShape, int]] = SHAPES) -> list[float]:
    optimizer = build_optimizer(ours.module, TRAIN)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    found = []
    for step in range(steps):
        shape, groups = shapes[step % len(shapes)]
        keys = torch.arange(shape.clips) + 100 * step
        found.append(float(ours.step(block(shape, step), shape, groups, keys, optimizer)[0]) / shape.clips)
    return found


def test_one_whole_graph_a_shape_with_the_losses_of_eager_training(tmp_path: Path) -> None:
    """Dropout and running statistics too; validation is eager and adds no graph. A restart finds the graphs in the storage."""
    shapes = SHAPES[1:]
    ours = worker(TRAIN)
    before = {name: value.clone() for name, value in ours.module.state_dict().items()}
    for shape, groups in shapes:
        assert ours.warm_up(shape, groups)
    assert all(torch.equal(value, before[name]) for name, value in ours.module.state_dict().items())
    assert all(p.grad is None for p in ours.module.parameters())
    assert counters["stats"]["unique_graphs"] == len(shapes) and not counters["graph_break"]
    eager = worker(dataclasses.replace(TRAIN, compile=False))
    assert not eager.warm_up(*shapes[0])
    assert losses(ours, 6, shapes) == pytest.approx(losses(eager, 6, shapes), rel=1e-5)
    for (name, value), want in zip(ours.module.state_dict().items(), eager.module.state_dict().values(), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-5, msg=name)
    ours.module.eval()
    with torch.inference_mode():
        ours.predict(block(shapes[0][0], 0))
    assert counters["stats"]["unique_graphs"] == len(shapes)
    assert not counters["aot_autograd"]["autograd_cache_hit"] and any((tmp_path / "compiled").rglob("*.so"))
    torch._dynamo.reset()
    worker(TRAIN).warm_up(*shapes[0])
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1


def test_slowfast_is_one_graph_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """As traced, forward and backward, without making kernels of it, which takes minutes on a CPU."""
    monkeypatch.setattr(step_module, "compile_model", lambda model: compile_model(model, backend="aot_eager"))
    shapes, train = SHAPES[:2], dataclasses.replace(TRAIN, mixup=0.5)
    ours = worker(train, lambda: build_model(MODEL, 5))
    for shape, groups in shapes:
        assert ours.warm_up(shape, groups)
    assert counters["stats"]["unique_graphs"] == len(shapes) and not counters["graph_break"]
    eager = worker(dataclasses.replace(train, compile=False), lambda: build_model(MODEL, 5))
    assert losses(ours, 4, shapes) == pytest.approx(losses(eager, 4, shapes), rel=1e-3)
    assert counters["stats"]["unique_graphs"] == len(shapes)


def test_a_run_of_many_shapes_goes_on_compiled_and_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced without making kernels; in other layouts and with fewer groups at once too."""
    monkeypatch.setattr(step_module, "compile_model", lambda model: compile_model(model, backend="eager"))
    change = {"compile": True, "channels_last": False, "micro_groups": 1}
    check_going_on(write_shards(tmp_path / "shards"), tmp_path, exact(RUN), change)


RANKED = ((BatchShape(8, 4, 16, 16), 2), (BatchShape(10, 2, 24, 24), 4), (BatchShape(4, 4, 24, 24), 1))
"""A group for each rank, shares of different sizes, and one group over both ranks, whose norms are synchronised and not compiled."""


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    step_module.compile_model = functools.partial(compile_model, backend="aot_eager")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found: dict[str, list[float]] = {}
    for train in (TRAIN, dataclasses.replace(TRAIN, compile=False)):
        ours = worker(train, session=GlooSession(Path(folder), rank=rank, world_size=2))
        assert isinstance(ours.model, DistributedDataParallel)
        optimizer = build_optimizer(ours.module, train)
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        losses = found.setdefault("compiled" if train.compile else "eager", [])
        for shape, groups in RANKED:
            ours.warm_up(shape, groups)
        for step in range(9):
            shape, groups = RANKED[step % len(RANKED)]
            mine = share_of(rank, 2, shape.clips, groups).clips
            whole, keys = block(shape, step), torch.arange(shape.clips) + 100 * step
            part = slice(mine.start, mine.stop)
            cut = Block(
                0, 0, whole.clips_NTHWC[part], whole.labels_N[part], whole.samples_N[part], whole.positions_N[part]
            )
            sums = ours.step(cut, shape, groups, keys[part], optimizer)
            dist.all_reduce(sums)
            losses.append(float(sums[0]) / shape.clips)
        if train.compile:
            found["graphs"] = [counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_compiled_ranks_have_the_losses_of_eager_ones(tmp_path: Path) -> None:
    """DDP on two processes over gloo, traced without making kernels (which takes minutes); and both those of one process, as far as float32 goes."""
    assert run_together(_rank, 2, str(tmp_path), within_s=400) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["compiled"] == second["compiled"] and first["compiled"] == pytest.approx(first["eager"], rel=1e-4)
    assert len(set(first["eager"])) == 9
    assert all(graphs == 2 and not breaks for graphs, breaks in (first["graphs"], second["graphs"]))
    assert first["compiled"] == pytest.approx(
        losses(worker(dataclasses.replace(TRAIN, compile=False)), 9, RANKED), rel=1e-4
    )
