"""Operations of a clip in training."""

from __future__ import annotations

import pytest

from mgray.config import ModelSection
from mgray.model.flops import ModelCost
from mgray.plan import ClipShape


def test_training_takes_three_times_the_published_forward_pass() -> None:
    # SlowFast R50 8x8: 65.7 G multiply-adds a 32x256x256 clip; the first layers need no gradient of their input
    cost = ModelCost(ModelSection(), 400)
    assert cost.parameters / 1e6 == pytest.approx(34.57, abs=0.01)
    assert cost.norm_layers == 110
    flops = cost.clip_flops(ClipShape(32, 256, 256))
    assert 2.9 * 2 * 65.71e9 < flops < 3 * 2 * 65.71e9
    assert cost.clip_flops(ClipShape(32, 256, 256)) == flops
