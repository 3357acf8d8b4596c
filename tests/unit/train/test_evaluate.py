"""Validation counts each video once; precise batch norm is the mean over the batches it saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgray.config import DataSection, Run, TrainSection
from mgray.data.shards.shard_set import ShardSet
from mgray.model.norm import convert_batchnorm, defer_running_stats
from mgray.plan import Plan, PlanSpec
from mgray.train.evaluate import evaluate, precise_bn, validation_source
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.support.shards import write_shards

CLASSES = 7
RUN = Run(
    plan=PlanSpec(
        frames=3, crop=16, batch=4, stride=2, jitter_min=20, jitter_max=24, epochs=4, lr_steps=(0, 3), lr_factors=(1.0, 0.1),
        short_cycle=True, bn_group=2,
    ),
    data=DataSection(path="unused"),
    train=TrainSection(precision="float64", eval_batch=4, precise_bn=3),
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_shards(tmp_path_factory.mktemp("evaluate"), train=10, val=9, classes=CLASSES)


@pytest.fixture
def worker() -> Worker:
    torch.manual_seed(0)
    layers = [nn.BatchNorm3d(3), nn.AdaptiveAvgPool3d((1, 3, 3)), nn.Flatten(), nn.Linear(27, CLASSES)]
    model = convert_batchnorm(nn.Sequential(*layers)).double()
    defer_running_stats(model)
    return Worker(model.train(), LocalSession(Path("unused")), RUN.data, RUN.train)


def test_the_validation_clips_are_those_of_the_base_shape(shards: ShardSet) -> None:
    source = validation_source(RUN, shards)
    assert (source.shape.frames, source.shape.height, source.shape.width) == (3, 16, 16)
    assert (source.stride, source.short_side, source.batch) == (2, 20, 4)


@pytest.mark.parametrize("batch", [1, 4, 9, 50])
def test_scores_are_those_of_all_videos_once(shards: ShardSet, worker: Worker, batch: int) -> None:
    source = validation_source(dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, eval_batch=batch)), shards)
    found = evaluate(worker, LocalSession(Path("unused")), source)
    scores = found.scores
    whole = dataclasses.replace(source, batch=9).block(0, 0, 1)
    worker.module.eval()
    with torch.no_grad():
        logits, labels = worker.predict(whole), torch.from_numpy(whole.labels_N)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert scores == {
        "top1": pytest.approx(float((ranks < 1).double().mean())),
        "top5": pytest.approx(float((ranks < 5).double().mean())),
        "loss": pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6),
        "num_clips": 9,
    }
    assert 0 < scores["top5"] < 1
    pairs = list(zip(labels.tolist(), logits.argmax(1).tolist(), strict=True))
    assert found.classes == {"confusion": [[*pair, pairs.count(pair)] for pair in sorted(set(pairs))]}


def test_evaluating_changes_nothing(shards: ShardSet, worker: Worker) -> None:
    before = {name: value.clone() for name, value in worker.module.state_dict().items()}
    evaluate(worker, LocalSession(Path("unused")), validation_source(RUN, shards))
    assert all(torch.equal(value, before[name]) for name, value in worker.module.state_dict().items())
    assert all(module.training for module in worker.module.modules())


def test_precise_statistics_are_those_of_the_batches(shards: ShardSet, worker: Worker) -> None:
    """Of three base-shape batches, with equal weight, whatever the running average was; a function of the step."""
    norm = worker.module[0]
    norm.running_mean.fill_(100.0)
    seen: list[np.ndarray] = []
    clips = Worker.clips

    def keep(self: Worker, block, part=None) -> torch.Tensor:
        assert self is worker
        seen.append(clips(self, block, part))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "clips", keep)
        precise_bn(worker, LocalSession(Path("unused")), RUN, shards, steps_done=5)
    assert [tuple(batch.shape) for batch in seen] == [(4, 3, 3, 16, 16)] * 3
    means = torch.stack([batch.mean((0, 2, 3, 4)) for batch in seen])
    variances = torch.stack([batch.var((0, 2, 3, 4)) for batch in seen])
    torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=1e-9, atol=1e-9)
    assert norm.momentum == 0.1
    first = norm.running_mean.clone()
    for steps, same in ((5, True), (6, False)):
        precise_bn(worker, LocalSession(Path("unused")), RUN, shards, steps_done=steps)
        assert torch.equal(norm.running_mean, first) == same


def test_precise_batches_are_no_more_than_the_plan_has(shards: ShardSet, worker: Worker) -> None:
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, precise_bn=10_000))
    precise_bn(worker, LocalSession(Path("unused")), run, shards, steps_done=0)
    steps = Plan.compile(RUN.plan.baseline(), 10).num_steps
    assert int(worker.module[0].num_batches_tracked) == steps
