"""The loop in one process: resumption at every step, what it refuses, its optimizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgray.config import DataSection, ModelSection, Run, ScaleSection, TrainSection
from mgray.data.shard import ShardSet
from mgray.errors import CheckpointError, TrainingError
from mgray.model.norm import convert_batchnorm
from mgray.plan import PlanSpec
from mgray.train.loop import Loop, build_optimizer
from mgray.train.metrics import next_attempt
from mgray.train.session import LocalSession
from tests.support.shards import write_shards

RUN = Run(
    plan=PlanSpec(
        frames=4, crop=16, batch=2, stride=1, jitter_min=18, jitter_max=24, epochs=20, lr_steps=(0, 16), lr_factors=(1.0, 0.1),
        lr=0.01, long_cycle="run", short_cycle=True, bn_group=2,
    ),
    data=DataSection(path="unused"),
    model=ModelSection(name="slowfast", depth=10, width=8, alpha=2, fusion_kernel=3, dropout=0.2),
    train=TrainSection(evals=2, eval_batch=3, precise_bn=1),
    scale=ScaleSection(save_every=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("loop"))


class KeepsAll(LocalSession):
    """Keeps every checkpoint, and may begin from any."""

    begin: str = ""

    def load(self):
        session = LocalSession(self.folder)
        if self.begin:
            session._checkpoints = lambda: [self.folder / self.begin]
        return session.load()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path, attempt: int) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in records(folder) if r["kind"] == "step" and r["attempt"] == attempt}


@pytest.fixture(scope="module")
def finished(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    Loop(RUN, KeepsAll(folder, keep=1000), shards, folder, 0).train()
    return folder


def test_resumes_at_every_step_with_the_same_rest(shards: ShardSet, finished: Path) -> None:
    whole = losses(finished, 0)
    assert len({r["frames"] for r in records(finished) if r["kind"] == "step"}) == 3
    for attempt, checkpoint in enumerate(sorted(path.name for path in finished.glob("checkpoint_*"))[:-1], 1):
        session = KeepsAll(finished, keep=1000)
        session.begin = checkpoint
        loop = Loop(RUN, session, shards, finished, next_attempt(finished))
        assert loop.attempt == attempt
        first = loop.step
        loop.train()
        rest = losses(finished, attempt)
        assert list(rest) == list(range(first, len(whole)))
        assert list(rest.values()) == [whole[step] for step in rest]


def test_the_run_is_recorded(finished: Path) -> None:
    first = [record for record in records(finished) if record["attempt"] == 0]
    assert [r["event"] for r in first if r["kind"] == "event"][:2] == ["start", "phase"]
    assert first[-1]["event"] == "finish"
    validations = [r for r in first if r["kind"] == "eval"]
    assert len(validations) == 2 and all(r["num_clips"] == 5 and 0 <= r["top1"] <= 1 for r in validations)
    assert list((finished / "tensorboard").iterdir())


def test_local_checkpoints_are_few_and_whole(shards: ShardSet, tmp_path: Path) -> None:
    Loop(RUN, LocalSession(tmp_path), shards, tmp_path, 0).train()
    assert len(list(tmp_path.glob("checkpoint_*"))) == 3
    assert not list(tmp_path.glob("*.part*"))


def test_another_plan_names_the_setting(shards: ShardSet, finished: Path) -> None:
    other = dataclasses.replace(RUN, plan=dataclasses.replace(RUN.plan, lr=0.02))
    with pytest.raises(CheckpointError, match=r"plan\.lr 0\.01 -> 0\.02"):
        Loop(other, LocalSession(finished), shards, finished, 0)


def test_other_data_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="other data"):
        Loop(RUN, LocalSession(finished), write_shards(tmp_path, classes=2, frames=9), finished, 0)


def test_a_loss_that_is_not_finite_stops_the_run(shards: ShardSet, tmp_path: Path) -> None:
    run = dataclasses.replace(
        RUN, plan=dataclasses.replace(RUN.plan, lr=1e30), train=dataclasses.replace(RUN.train, precise_bn=0)
    )
    with pytest.raises(TrainingError, match=r"not finite at step \d+ \(videos \d+\.mp4"):
        Loop(run, LocalSession(tmp_path), shards, tmp_path, 0).train()


def test_batch_norm_alone_has_no_weight_decay() -> None:
    model = convert_batchnorm(nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 2)))
    decayed, free = build_optimizer(model, TrainSection(weight_decay=0.01)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert [p.shape for p in free["params"]] == [(4,), (4,)]
    assert len(decayed["params"]) == 4


def test_momentum_needs_no_correction_when_the_rate_jumps() -> None:
    """v = mu v + g; p -= lr (g + mu v): the buffer holds no rate (against the recursion, in float64)."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = build_optimizer(model, TrainSection(momentum=0.9, weight_decay=0.0))
    p = v = 0.0
    p = 1.0
    for lr in (0.8, 0.4, 0.4, 0.05, 0.8):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        (weight.square() * 0.5).sum().backward()
        gradient = p
        optimizer.step()
        v = 0.9 * v + gradient
        p -= lr * (gradient + 0.9 * v)
        assert weight.item() == pytest.approx(p, rel=1e-12)
