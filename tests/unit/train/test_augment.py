"""RandAugment: torchvision's operations, draws by position, the same on any number of ranks and micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from mgray.config import TrainSection
from mgray.data.source import Block
from mgray.plan import BatchShape, ClipShape, share_of
from mgray.train.augment import MAX_MAGNITUDE, OPERATIONS, augmented, draw_operations
from mgray.train.session import LocalSession
from mgray.train.step import Worker
from tests.unit.train.test_step import DATA, block, network, part

TRAIN = TrainSection(precision="float64", randaugment=20, randaugment_growth=0.5, seed=3)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_operations_are_torchvision_s(name: str, magnitude: int) -> None:
    """Each at the magnitude and of the sign that torchvision would take, on all frames."""
    torch.manual_seed(0)
    clip_TCHW = torch.randint(0, 256, (3, 3, 20, 26), dtype=torch.uint8)
    theirs = v2.RandAugment()
    make, signed = theirs._AUGMENTATION_SPACE[name]
    values = make(MAX_MAGNITUDE + 1, 20, 26)
    value = float(values[magnitude]) if values is not None else 0.0
    for sign in (1, -1) if signed else (1,):
        want = theirs._apply_image_or_video_transform(
            clip_TCHW, name, sign * value, interpolation=InterpolationMode.NEAREST, fill={Tensor: None}
        )
        got = OPERATIONS[name](clip_TCHW, sign * magnitude / MAX_MAGNITUDE)
        assert (got.int() - want.int()).abs().max() <= 1  # torchvision's magnitudes are in float32
    assert set(OPERATIONS) == set(theirs._AUGMENTATION_SPACE)


def test_a_draw_is_a_function_of_seed_and_position() -> None:
    draws = [draw_operations(1, position) for position in range(2000)]
    assert draws == [draw_operations(1, position) for position in range(2000)]
    assert draws != [draw_operations(2, position) for position in range(2000)]
    assert draw_operations(-1, 5) == draw_operations((1 << 64) - 1, 5)
    names = [name for draw in draws for name, _ in draw]
    assert all(names.count(name) == pytest.approx(4000 / 14, rel=0.25) for name in OPERATIONS)
    assert sum(sign for draw in draws for _, sign in draw) == pytest.approx(0, abs=250)


def test_all_frames_are_changed_alike() -> None:
    frame = torch.randint(0, 256, (1, 1, 12, 12, 3), dtype=torch.uint8)
    clips = augmented(frame.repeat(16, 4, 1, 1, 1), range(16), 0, 15.0)
    assert clips.shape == (16, 4, 12, 12, 3) and clips.is_contiguous() and clips.dtype == torch.uint8
    assert torch.equal(clips, clips[:, :1].expand_as(clips))
    assert len({bytes(clip[0].numpy()) for clip in clips}) > 8


def changed(batch: Block, train: TrainSection, rank: int, world_size: int) -> list[Tensor]:
    shape = BatchShape(11, 2, 6, 6)
    session = LocalSession(Path("unused"), rank=rank, world_size=world_size)
    ours = Worker(network(), session, DATA, train, base=ClipShape(4, 12, 12))
    mine = part(batch, share_of(rank, world_size, 11, 4).clips)
    assert mine is not None
    return [ours._batch(mine, item)[0] for item in ours.micro_batches(shape, 4)]


def test_clips_are_changed_alike_on_any_number_of_ranks_and_micro_batches() -> None:
    batch = block(11)
    (whole,) = changed(batch, TRAIN, 0, 1)
    plain = Worker(network(), LocalSession(Path("unused")), DATA, TRAIN)
    assert not torch.equal(whole, plain.clips(batch))
    for world_size in (1, 2, 3, 4):
        micro = TrainSection(precision="float64", randaugment=20, randaugment_growth=0.5, seed=3, micro_groups=1)
        together = [clips for rank in range(world_size) for clips in changed(batch, micro, rank, world_size)]
        assert torch.equal(torch.cat(together), whole)


def test_strength_grows_with_the_grid() -> None:
    batch = torch.zeros(1, 2, 6, 6, 3)
    ours = Worker(network(), LocalSession(Path("unused")), DATA, TRAIN, base=ClipShape(4, 12, 12))
    assert ours._magnitude(batch) == pytest.approx(20 * (2 * 6 * 6 / (4 * 12 * 12)) ** 0.5)
    assert ours._magnitude(torch.zeros(1, 4, 12, 12, 3)) == 20.0
    even = Worker(network(), LocalSession(Path("unused")), DATA, TrainSection(randaugment=9), base=ClipShape(4, 12, 12))
    assert even._magnitude(batch) == 9.0
