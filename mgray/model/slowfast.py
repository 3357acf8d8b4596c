"""SlowFast (Feichtenhofer, Fan, Malik, He, "SlowFast Networks for Video Recognition", ICCV 2019, arXiv 1812.03982).

The `ModelSection` of each setting that PySlowFast publishes, whose clips have `plan.frames` at `plan.stride`:

    setting       clip    depth   alpha   fusion_kernel   temporal_blocks   PySlowFast
    4x16 R50      32x2    50      8       5               0                 SLOWFAST_4x16_R50
    8x8 R50       32x2    50      4       7               0                 SLOWFAST_8x8_R50
    16x8 R50      64x2    50      4       7               0                 SSv2/SLOWFAST_16x8_R50
    8x8 R101      32x2    101     4       5               6                 SLOWFAST_8x8_R101_50_50
    8x8 R101      32x2    101     4       5               0                 SLOWFAST_8x8_R101_101_101
    16x8 R101     64x2    101     4       5               6                 SLOWFAST_16x8_R101_50_50

beta_inv is 8 and width 64 in all. Their slow pathway takes frames spread from the first to the last, and its lateral
connections are centred on every alpha-th frame from the first (`slow_frames` "spread"): give this for weights that
PySlowFast trained. Ours is centred: the frames that a connection joins are the same moment, whatever the clip's length.

Shape suffixes: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgray.model.resnet3d import FAST, LAYOUTS, SLOW, Stem, initialise, stage

FUSION_RATIO = 2
"""Channels of a lateral connection over those of the fast pathway."""


def slow_frames(frames: int, alpha: int, first: int | None = None) -> range:
    """Every alpha-th frame of a clip of `frames`, at least one: from `first`, else centred (what the slow pathway sees)."""
    count = -(-frames // alpha)
    if first is None:
        first = (frames - 1 - (count - 1) * alpha) // 2
    return range(first, first + (count - 1) * alpha + 1, alpha)


class Lateral(nn.Module):
    """Fast features for the slow pathway: a convolution over time, centred on each frame of `slow_frames`."""

    def __init__(self, fast_channels: int, kernel_frames: int, alpha: int, first: int | None = None) -> None:
        super().__init__()
        self.kernel_frames, self.alpha, self.first = kernel_frames, alpha, first
        self.conv = nn.Conv3d(
            fast_channels, FUSION_RATIO * fast_channels, (kernel_frames, 1, 1), (alpha, 1, 1), bias=False
        )
        self.norm = nn.BatchNorm3d(FUSION_RATIO * fast_channels)

    def forward(self, fast_NCTHW: Tensor) -> Tensor:
        frames = fast_NCTHW.shape[2]
        centres, before = slow_frames(frames, self.alpha, self.first), self.kernel_frames // 2
        left = before - centres[0]
        right = centres[-1] + self.kernel_frames - before - frames
        return F.relu(self.norm(self.conv(F.pad(fast_NCTHW, (0, 0, 0, 0, left, right)))), inplace=True)


class SlowFast(nn.Module):
    """SlowFast for clips of any number of frames and any size.

    Args:
        depth: a key of `LAYOUTS`; 50 and 101 are the paper's.
        width: channels of the slow pathway's stem; a multiple of `beta_inv`.
        alpha: frames of the fast pathway for one of the slow pathway.
        beta_inv: channels of the slow pathway for one of the fast pathway.
        fusion_kernel: frames that a lateral convolution spans (7 for 8x8, 5 for 4x16).
        sampling: the slow pathway's frames, every alpha-th in the middle, or spread from first to last (as in PySlowFast).
        temporal_blocks: blocks of a stage after which all span one frame; 0 for none such.
        dropout: probability before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int = 50,
        width: int = 64,
        alpha: int = 4,
        beta_inv: int = 8,
        fusion_kernel: int = 7,
        sampling: Literal["centred", "spread"] = "centred",
        temporal_blocks: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layout, fast_width = LAYOUTS[depth], width // beta_inv
        expansion = 4 if layout.bottleneck else 1
        self.alpha, self.sampling = alpha, sampling
        self.slow_stem, self.fast_stem = Stem(width, SLOW.stem), Stem(fast_width, FAST.stem)
        self.slow_stages, self.fast_stages, self.laterals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        slow, fast = width, fast_width
        for index in range(len(layout.blocks)):
            self.laterals.append(Lateral(fast, fusion_kernel, alpha, None if sampling == "centred" else 0))
            slow += FUSION_RATIO * fast
            for stages, inputs, base, kernels in (
                (self.slow_stages, slow, width, SLOW.kernels[index]),
                (self.fast_stages, fast, fast_width, FAST.kernels[index]),
            ):
                stages.append(stage(inputs, base * 2**index, layout, index, kernels, temporal_blocks))
            slow, fast = width * 2**index * expansion, fast_width * 2**index * expansion
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(slow + fast, num_classes)
        initialise(self, self.classifier, zero_blocks=layout.bottleneck)

    def _slow_clips(self, clips_NCTHW: Tensor) -> Tensor:
        count = clips_NCTHW.shape[2]
        frames = slow_frames(count, self.alpha)
        if self.sampling == "centred":
            return clips_NCTHW[:, :, frames.start : frames.stop : frames.step]
        # the reference's own arithmetic: in exact arithmetic some frames would be others
        places = torch.linspace(0, count - 1, len(frames), dtype=torch.float32, device=clips_NCTHW.device)
        return clips_NCTHW.index_select(2, places.long())

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Logits [N, classes] of float clips [N, 3, T, H, W]."""
        slow, fast = self.slow_stem(self._slow_clips(clips_NCTHW)), self.fast_stem(clips_NCTHW)
        for slow_stage, fast_stage, lateral in zip(self.slow_stages, self.fast_stages, self.laterals, strict=True):
            slow = slow_stage(torch.cat([slow, lateral(fast)], dim=1))
            fast = fast_stage(fast)
        features = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)
        logits: Tensor = self.classifier(self.dropout(features))
        return logits
