"""A step's arithmetic: normalisation, micro-batches, the gradient of the global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgray.config import DataSection, TrainSection
from mgray.data.source import Block
from mgray.model.norm import convert_batchnorm, defer_running_stats
from mgray.plan import BatchShape
from mgray.train.session import LocalSession
from mgray.train.step import Worker

DATA = DataSection(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


class Rank(LocalSession):
    """A rank among several that never meets the others."""

    asked: list[tuple[int, ...]]

    def subgroup(self, ranks: tuple[int, ...]) -> str:
        self.asked = [*getattr(self, "asked", []), ranks]
        return f"group {ranks}"


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv3d(3, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ]
    model = convert_batchnorm(nn.Sequential(*layers)).double()
    defer_running_stats(model)
    return model.train()


def block(clips: int) -> Block:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (clips, 2, 6, 6, 3), np.uint8)
    count = np.arange(clips)
    return Block(0, 0, pixels, count % 3, count, count)


def worker(train: TrainSection, model: nn.Module | None = None, rank: int = 0, world_size: int = 1) -> Worker:
    session = Rank(Path("unused"), rank=rank, world_size=world_size)
    return Worker(model or network(), session, DATA, train)


def test_clips_are_normalised() -> None:
    batch = block(2)
    got = worker(TrainSection(precision="float64")).clips(batch)
    want = (batch.clips_NTHWC / 255.0 - np.array(DATA.mean)) / np.array(DATA.std)
    assert got.shape == (2, 3, 2, 6, 6)
    np.testing.assert_allclose(got.numpy(), want.transpose(0, 4, 1, 2, 3), rtol=1e-6, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("micro_groups", [0, 1, 2])
def test_the_gradient_is_that_of_the_global_mean(micro_groups: int) -> None:
    """Groups normalised by themselves, gradients of the mean loss over all clips, however many are computed at once."""
    train = TrainSection(precision="float64", micro_groups=micro_groups)
    ours, batch = worker(train), block(7)
    optimizer = torch.optim.SGD(ours.module.parameters(), lr=0.0)
    sums = ours.step(batch, BatchShape(7, 2, 6, 6), 3, torch.arange(7), optimizer)
    reference = network()
    clips, labels = ours.clips(batch), torch.from_numpy(batch.labels_N)
    logits = []
    for first, end in ((0, 2), (2, 4), (4, 7)):
        norm = reference[1]
        norm.groups = None
        logits.append(reference(clips[first:end]))
    loss = F.cross_entropy(torch.cat(logits), labels)
    loss.backward()
    assert sums[0].item() / 7 == pytest.approx(loss.item(), rel=1e-12)
    assert sums[1].item() == (torch.cat(logits).argmax(1) == labels).sum().item()
    for mine, theirs in zip(ours.module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_whole_groups_go_to_ranks() -> None:
    sizes = []
    for rank in range(3):
        parts = worker(TrainSection(), rank=rank, world_size=3).micro_batches(BatchShape(28, 2, 6, 6), 5)
        assert len(parts) == 1
        assert parts[0].groups.process_group is None
        sizes += parts[0].groups.sizes
    assert sizes == [5, 6, 5, 6, 6]


def test_a_group_that_spans_ranks_is_synchronised_over_just_them() -> None:
    """Two groups on five ranks; every rank asks for every process group, in the same order."""
    seen = []
    for rank in range(5):
        ours = worker(TrainSection(), rank=rank, world_size=5)
        (part,) = ours.micro_batches(BatchShape(10, 2, 6, 6), 2)
        assert ours._session.asked == [(0, 1), (2, 3, 4)]
        seen.append(part.groups.process_group)
    assert seen == ["group (0, 1)"] * 2 + ["group (2, 3, 4)"] * 3


def test_ranks_without_clips_have_no_part() -> None:
    idle = []
    for rank in range(4):
        ours = worker(TrainSection(), rank=rank, world_size=4)
        parts = ours.micro_batches(BatchShape(2, 2, 6, 6), 1)
        idle.append(not parts)
        assert [len(ranks) for ranks in ours._session.asked] == [2]
    assert sum(idle) == 2
