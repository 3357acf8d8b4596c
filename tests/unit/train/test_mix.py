"""Mixing: torchvision's arithmetic, draws that belong to groups, the same on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from mgray.config import TrainSection
from mgray.data.source import Block
from mgray.model.norm import BnGroups
from mgray.plan import BatchShape, share_of
from mgray.train.mix import Mix, Targets, draw_mix, mix_groups, mixed, partners_of
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.support.processes import run_together
from tests.unit.train.test_step import DATA, block, network, part

CLASSES = 4


def batch(clips: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(clips, 3, 2, 12, 10, dtype=torch.float64), torch.arange(clips) % CLASSES


def reference(kind: type, params: dict) -> tuple[Tensor, Tensor]:  # type: ignore[type-arg]
    """Clips and soft labels from torchvision's transform with given draws."""
    clips, labels = batch()
    params = {"labels": labels, "batch_size": len(labels), **params}
    transform = kind(num_classes=CLASSES)
    # as frames side by side: it takes pure tensors for pictures
    pictures = clips.flatten(1, 2)
    return transform.transform(pictures, params).view_as(clips), transform.transform(labels, params)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mix", [Mix(0.3, None), Mix(1.0 - 6 * 4 / 120, (2, 5, 8, 9)), Mix(1.0, (3, 3, 3, 3))])
def test_clips_and_losses_are_torchvision_s(mix: Mix, smoothing: float) -> None:
    if mix.box is None:
        want, soft = reference(v2.MixUp, {"lam": mix.own})
    else:
        top, left, bottom, right = mix.box
        want, soft = reference(v2.CutMix, {"box": (left, top, right, bottom), "lam_adjusted": mix.own})
    clips, labels = batch()
    groups = BnGroups((5,))
    torch.testing.assert_close(mixed(clips, partners_of(clips, groups), mix), want, rtol=0, atol=1e-15)
    logits = torch.randn(5, CLASSES, dtype=torch.float64)
    targets = Targets(labels, partners_of(labels, groups), torch.full((5,), mix.own, dtype=torch.float64))
    loss = F.cross_entropy(logits, soft.double(), reduction="sum", label_smoothing=smoothing)
    assert targets.loss(logits, smoothing).item() == pytest.approx(loss.item(), rel=1e-6)
    assert targets.num_right(soft).item() == 5


def test_draws_are_torchvision_s_in_distribution() -> None:
    """Shares from Beta(alpha, alpha); boxes of the area that the share leaves, cut at the border."""
    mixes = [draw_mix(0.8, 0.0, 1, position, 16, 24) for position in range(4000)]
    assert all(mix.box is None for mix in mixes)
    shares = np.array([mix.own for mix in mixes])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(0.25 / (2 * 0.8 + 1), abs=0.005)
    torch.manual_seed(0)
    theirs = [v2.CutMix(alpha=1.0, num_classes=2).make_params([torch.empty(1, 3, 16, 24)]) for _ in range(4000)]
    ours = [draw_mix(0.0, 1.0, 1, position, 16, 24) for position in range(4000)]
    for mix in ours:
        assert mix.box is not None
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= 16 and 0 <= left <= right <= 24
        assert mix.own == pytest.approx(1.0 - (bottom - top) * (right - left) / 384)
    shares = np.array([[mix.own for mix in ours], [params["lam_adjusted"] for params in theirs]])
    assert shares[0].mean() == pytest.approx(shares[1].mean(), abs=0.02)
    assert shares[0].std() == pytest.approx(shares[1].std(), abs=0.02)
    edges = np.array([[mix.box for mix in ours], [[p["box"][k] for k in (1, 0, 3, 2)] for p in theirs]])
    np.testing.assert_allclose(edges[0].mean(0), edges[1].mean(0), atol=0.6)


def test_a_draw_is_a_function_of_seed_and_position() -> None:
    def draws(seed: int) -> list[Mix]:
        return [draw_mix(0.5, 0.5, seed, position, 16, 16) for position in range(200)]

    assert draws(3) == draws(3) and draws(3) != draws(4) and draws(-1) == draws(-1)
    boxed = sum(mix.box is not None for mix in draws(3))
    assert 70 < boxed < 130
    assert len({mix.own for mix in draws(3)}) > 120  # boxes are of whole pixels


def test_partners_stay_in_their_group() -> None:
    values = torch.arange(7)
    assert partners_of(values, BnGroups((3, 1, 2, 1))).tolist() == [2, 0, 1, 3, 5, 4, 6]


def test_each_group_has_its_own_draw() -> None:
    clips, labels = batch(5)
    train = TrainSection(mixup=0.8, seed=2)
    got, targets = mix_groups(clips, labels, BnGroups((2, 3)), [40, 42], train)
    shares = [draw_mix(0.8, 0.0, 2, position, 12, 10).own for position in (40, 42)]
    assert targets.own_N is not None and targets.own_N.tolist() == [shares[0]] * 2 + [shares[1]] * 3
    torch.testing.assert_close(got[2], shares[1] * clips[2] + (1 - shares[1]) * clips[4])


class Recorder(Worker):
    """A worker that keeps the clips it was given and the labels, instead of training."""

    def mixed_part(self, batch: Block, shape: BatchShape, bn_groups: int) -> tuple[Tensor, Targets]:
        parts = [self._batch(batch, item) for item in self.micro_batches(shape, bn_groups)]
        targets = [target for _, target in parts]
        joined = Targets(
            *(torch.cat([getattr(t, name) for t in targets]) for name in ("labels_N", "partners_N", "own_N"))
        )
        return torch.cat([clips for clips, _ in parts]), joined


TRAIN = TrainSection(precision="float64", mixup=0.8, cutmix=1.0, micro_groups=1, seed=5)
SHAPE, GROUPS = BatchShape(11, 2, 6, 6), 2


def _rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)

    class Gloo(LocalSession):
        def subgroup(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
            return groups[ranks]

    shares = [share_of(r, world_size, SHAPE.clips, GROUPS) for r in range(world_size)]
    spans = dict.fromkeys(tuple(share.ranks) for share in shares if len(share.ranks) > 1)
    groups = {span: dist.new_group(list(span)) for span in spans}
    worker = Recorder(network(), Gloo(Path("unused"), rank=rank, world_size=world_size), DATA, TRAIN)
    mine = part(block(SHAPE.clips), shares[rank].clips)
    assert mine is not None
    clips, targets = worker.mixed_part(mine, SHAPE, GROUPS)
    torch.save((clips, targets.labels_N, targets.partners_N, targets.own_N), f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves early looks like a crash to one that still connects
    dist.destroy_process_group()


def test_whole_groups_are_mixed_alike_on_any_number_of_ranks() -> None:
    shape, groups, batch = BatchShape(11, 2, 6, 6), 4, block(11)
    clips, targets = Recorder(network(), LocalSession(Path("unused")), DATA, TRAIN).mixed_part(batch, shape, groups)
    for world_size in (2, 3, 4):
        together = []
        for rank in range(world_size):
            session = LocalSession(Path("unused"), rank=rank, world_size=world_size)
            mine = part(batch, share_of(rank, world_size, shape.clips, groups).clips)
            assert mine is not None
            together.append(Recorder(network(), session, DATA, TRAIN).mixed_part(mine, shape, groups))
        assert torch.equal(torch.cat([item for item, _ in together]), clips)
        for name in ("labels_N", "partners_N", "own_N"):
            assert torch.equal(torch.cat([getattr(t, name) for _, t in together]), getattr(targets, name))


def test_groups_that_span_ranks_are_mixed_alike(tmp_path: Path) -> None:
    """Two groups on five ranks: one spans two, one three."""
    world_size = 5
    alone = Recorder(network(), LocalSession(Path("unused")), DATA, TRAIN)
    clips, targets = alone.mixed_part(block(SHAPE.clips), SHAPE, GROUPS)
    assert run_together(_rank, world_size, world_size, str(tmp_path), within_s=120) == [0] * world_size
    loaded = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    together = [torch.cat(column) for column in zip(*loaded, strict=True)]
    for ours, want in zip(together, (clips, targets.labels_N, targets.partners_N, targets.own_N), strict=True):
        assert want is not None and torch.equal(ours, want)
    assert not torch.equal(clips, alone.clips(block(SHAPE.clips)))
