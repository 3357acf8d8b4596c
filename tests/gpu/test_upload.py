"""Blocks reach a GPU whole, whatever it computes meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mgray.config import DataSection, FeedSection, TrainSection
from mgray.data.source import Block
from mgray.train.session import LocalSession
from mgray.train.step import Worker

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_clips_arrive_as_they_are(tmp_path: Path) -> None:
    device = torch.device("cuda")
    session = LocalSession(tmp_path, FeedSection(), device=device)
    worker = Worker(nn.Identity(), session, DataSection(mean=(0, 0, 0), std=(1, 1, 1)), TrainSection())
    rng = np.random.default_rng(0)
    blocks = []
    for index in range(8):
        clips_NTHWC = rng.integers(0, 256, (16, 8, 112, 112, 3), np.uint8)
        numbers = np.arange(16)
        blocks.append(Block(index, 0, clips_NTHWC, numbers, numbers, numbers))
    busy = torch.rand(4096, 4096, device=device)
    uploaded = []
    for block in blocks:
        for _ in range(10):
            busy = busy @ busy
            busy /= busy.norm()
        uploaded.append(worker.clips(block))
    for block, clips_NCTHW in zip(blocks, uploaded, strict=True):
        expected = torch.from_numpy(block.clips_NTHWC).permute(0, 4, 1, 2, 3) / 255
        torch.testing.assert_close(clips_NCTHW.cpu(), expected)
