"""SlowFast (Feichtenhofer, Fan, Malik, He, "SlowFast Networks for Video Recognition", ICCV 2019, arXiv 1812.03982).

Shape suffixes: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Layout:
    """Residual blocks per stage, and whether they are bottlenecks (1x1, 3x3, 1x1) or basic (3x3, 3x3)."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


LAYOUTS: dict[int, Layout] = {
    10: Layout((1, 1, 1, 1), bottleneck=False),
    18: Layout((2, 2, 2, 2), bottleneck=False),
    34: Layout((3, 4, 6, 3), bottleneck=False),
    50: Layout((3, 4, 6, 3), bottleneck=True),
    101: Layout((3, 4, 23, 3), bottleneck=True),
}
FUSION_RATIO = 2
"""Channels of a lateral connection over those of the fast pathway."""
SLOW_KERNELS, FAST_KERNELS = (1, 1, 3, 3), (3, 3, 3, 3)
"""Frames that the first convolution of each block spans, in the stages res2 to res5 (paper, table 1)."""


def slow_frames(frames: int, alpha: int) -> range:
    """The frames that the slow pathway sees of a clip of `frames`: every alpha-th, centred, at least one."""
    count = -(-frames // alpha)
    first = (frames - 1 - (count - 1) * alpha) // 2
    return range(first, first + (count - 1) * alpha + 1, alpha)


def _conv(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """A convolution that keeps the size but for its spatial stride."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, bias=False)


class Stem(nn.Sequential):
    """Convolution over 7x7 pixels with stride 2, then max pooling with stride 2."""

    def __init__(self, channels: int, kernel_frames: int) -> None:
        super().__init__(
            _conv(3, channels, (kernel_frames, 7, 7), 2),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )


class Block(nn.Module):
    """A residual block whose first convolution spans `kernel_frames`."""

    def __init__(
        self, inputs: int, inner: int, outputs: int, kernel_frames: int, stride: int, *, bottleneck: bool
    ) -> None:
        super().__init__()
        if bottleneck:
            convs = [
                _conv(inputs, inner, (kernel_frames, 1, 1)),
                _conv(inner, inner, (1, 3, 3), stride),
                _conv(inner, outputs, (1, 1, 1)),
            ]
        else:
            convs = [_conv(inputs, inner, (kernel_frames, 3, 3), stride), _conv(inner, outputs, (1, 3, 3))]
        layers: list[nn.Module] = []
        for conv in convs:
            layers += [conv, nn.BatchNorm3d(conv.out_channels), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(_conv(inputs, outputs, (1, 1, 1), stride), nn.BatchNorm3d(outputs))
        )

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        return F.relu(self.shortcut(x_NCTHW) + self.body(x_NCTHW), inplace=True)

    def start_as_shortcut(self) -> None:
        """Zero the last batch norm's weight, so that the block adds nothing at first."""
        norm = self.body[-1]
        assert isinstance(norm, nn.BatchNorm3d)
        nn.init.zeros_(norm.weight)


class Lateral(nn.Module):
    """Fast features for the slow pathway: a convolution over time, centred on each frame that the slow pathway sees."""

    def __init__(self, fast_channels: int, kernel_frames: int, alpha: int) -> None:
        super().__init__()
        self.kernel_frames, self.alpha = kernel_frames, alpha
        self.conv = nn.Conv3d(
            fast_channels, FUSION_RATIO * fast_channels, (kernel_frames, 1, 1), (alpha, 1, 1), bias=False
        )
        self.norm = nn.BatchNorm3d(FUSION_RATIO * fast_channels)

    def forward(self, fast_NCTHW: Tensor) -> Tensor:
        frames = fast_NCTHW.shape[2]
        centres, before = slow_frames(frames, self.alpha), self.kernel_frames // 2
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
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layout, fast_width = LAYOUTS[depth], width // beta_inv
        expansion = 4 if layout.bottleneck else 1
        self.alpha = alpha
        self.slow_stem, self.fast_stem = Stem(width, 1), Stem(fast_width, 5)
        slow_stages: list[nn.Module] = []
        fast_stages: list[nn.Module] = []
        laterals: list[nn.Module] = []
        slow, fast = width, fast_width
        for index, blocks in enumerate(layout.blocks):
            laterals.append(Lateral(fast, fusion_kernel, alpha))
            slow += FUSION_RATIO * fast
            for stages, inputs, base, kernels in (
                (slow_stages, slow, width, SLOW_KERNELS),
                (fast_stages, fast, fast_width, FAST_KERNELS),
            ):
                inner = base * 2**index
                outputs = inner * expansion
                stages.append(
                    nn.Sequential(
                        *(
                            Block(
                                inputs if block == 0 else outputs, inner, outputs, kernels[index],
                                2 if index > 0 and block == 0 else 1, bottleneck=layout.bottleneck,
                            )
                            for block in range(blocks)
                        )
                    )
                )  # fmt: skip
            slow, fast = width * 2**index * expansion, fast_width * 2**index * expansion
        self.slow_stages, self.fast_stages = nn.ModuleList(slow_stages), nn.ModuleList(fast_stages)
        self.laterals = nn.ModuleList(laterals)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(slow + fast, num_classes)
        self._initialise(zero_blocks=layout.bottleneck)

    def _initialise(self, *, zero_blocks: bool) -> None:
        """He et al.'s normal initialisation by fan-out; 0.01 for the classifier (paper, section 4).

        The published networks start their blocks as shortcuts. Shallow ones of basic blocks do not: they spend a third of a
        short training on waking up (docs/log.md, 2026-11-24).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Block) and zero_blocks:
                module.start_as_shortcut()
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Logits [N, classes] of float clips [N, 3, T, H, W]."""
        frames = slow_frames(clips_NCTHW.shape[2], self.alpha)
        slow = self.slow_stem(clips_NCTHW[:, :, frames.start : frames.stop : frames.step])
        fast = self.fast_stem(clips_NCTHW)
        for slow_stage, fast_stage, lateral in zip(self.slow_stages, self.fast_stages, self.laterals, strict=True):
            slow = slow_stage(torch.cat([slow, lateral(fast)], dim=1))
            fast = fast_stage(fast)
        features = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)
        logits: Tensor = self.classifier(self.dropout(features))
        return logits
