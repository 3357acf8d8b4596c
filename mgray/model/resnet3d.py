"""Residual video networks: the stages that all of ours share, and those of one pathway (Slow, I3D, I3D non-local).

Slow is the slow pathway of SlowFast alone (Feichtenhofer et al., arXiv 1812.03982); I3D is an inflated ResNet (Carreira and
Zisserman, arXiv 1705.07750) and non-local blocks are Wang et al.'s (arXiv 1711.07971), both in the form that PySlowFast
publishes. `ModelSection` of each published setting, whose clips have `plan.frames` at `plan.stride`:

    name       depth     clip            PySlowFast
    slow       50, 101   4x16 or 8x8     SLOW_4x16_R50, SLOW_8x8_R50
    i3d        50, 101   8x8             I3D_8x8_R50, I3D_8x8_R101
    i3d_nln    50, 101   8x8             I3D_NLN_8x8_R50, I3D_NLN_8x8_R101

The reference averages probabilities over the positions of a crop larger than the trained one; these networks pool first, as
the reference does when the short cycle is on.

Shape suffixes: N clips, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a network of one pathway sees time."""

    stem: int
    """Frames that the first convolution spans."""
    kernels: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Frames that the first convolution of the blocks spans, in turn, in the stages res2 to res5."""
    pool: int = 1
    """Frames that are max-pooled into one after res2."""
    nonlocal_after: tuple[tuple[int, ...], ...] = ((), (), (), ())
    """Blocks that a non-local block follows, for each stage."""


SLOW = Architecture(1, ((1,), (1,), (3,), (3,)))
FAST = Architecture(5, ((3,), (3,), (3,), (3,)))
I3D = Architecture(5, ((3,), (3, 1), (3, 1), (1, 3)), pool=2)
I3D_NLN = replace(I3D, nonlocal_after=((), (1, 3), (1, 3, 5), ()))
ARCHITECTURES: dict[str, Architecture] = {"slow": SLOW, "i3d": I3D, "i3d_nln": I3D_NLN}
"""Networks of one pathway, by their name in `model.name`."""


def conv3d(inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """A convolution that keeps the size but for its spatial stride."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, bias=False)


class Stem(nn.Sequential):
    """Convolution over 7x7 pixels with stride 2, then max pooling with stride 2."""

    def __init__(self, channels: int, kernel_frames: int) -> None:
        super().__init__(
            conv3d(3, channels, (kernel_frames, 7, 7), 2),
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
                conv3d(inputs, inner, (kernel_frames, 1, 1)),
                conv3d(inner, inner, (1, 3, 3), stride),
                conv3d(inner, outputs, (1, 1, 1)),
            ]
        else:
            convs = [conv3d(inputs, inner, (kernel_frames, 3, 3), stride), conv3d(inner, outputs, (1, 3, 3))]
        layers: list[nn.Module] = []
        for conv in convs:
            layers += [conv, nn.BatchNorm3d(conv.out_channels), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(conv3d(inputs, outputs, (1, 1, 1), stride), nn.BatchNorm3d(outputs))
        )

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        return F.relu(self.shortcut(x_NCTHW) + self.body(x_NCTHW), inplace=True)

    def start_as_shortcut(self) -> None:
        """Zero the last batch norm's weight, so that the block adds nothing at first."""
        norm = self.body[-1]
        assert isinstance(norm, nn.BatchNorm3d)
        nn.init.zeros_(norm.weight)


class NonLocal(nn.Module):
    """Each position adds a mean of all positions' features, weighted by softmax of scaled dot products.

    Keys and values are max-pooled over 2x2 pixels first. The batch norm's weight is zero at first, so that the block adds
    nothing (arXiv 1711.07971, sections 3.3 and 4.1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv3d(channels, channels // 2, 1) for _ in range(3))
        self.out = nn.Conv3d(channels // 2, channels, 1)
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        height, width = x_NCTHW.shape[3:]
        pooled = F.max_pool3d(x_NCTHW, (1, min(2, height), min(2, width)))
        # [N, C, T, H, W] -> [N, 1 head, T*H*W, C]
        query, key, value = (
            y.flatten(2).transpose(1, 2).unsqueeze(1) for y in (self.theta(x_NCTHW), self.phi(pooled), self.g(pooled))
        )
        mean = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        # [N, T*H*W, C] -> [N, C, T, H, W]
        mean_NCTHW = mean.transpose(1, 2).reshape(x_NCTHW.shape[0], self.out.in_channels, *x_NCTHW.shape[2:])
        output: Tensor = x_NCTHW + self.norm(self.out(mean_NCTHW))
        return output


def spans(kernels: Sequence[int], blocks: int, temporal_blocks: int) -> list[int]:
    """Frames that the first convolution of each block of a stage spans: `kernels` in turn, then one."""
    return [kernels[i % len(kernels)] if i < (temporal_blocks or blocks) else 1 for i in range(blocks)]


def stage(
    inputs: int, inner: int, layout: Layout, index: int, kernels: Sequence[int], temporal_blocks: int
) -> nn.Sequential:
    """The blocks of stage res`index + 2`, whose first halves the size in every stage but res2.

    Args:
        kernels: frames that the blocks' first convolutions span, in turn.
        temporal_blocks: blocks after which all span one frame; 0 for none such.
    """
    outputs = inner * (4 if layout.bottleneck else 1)
    return nn.Sequential(
        *(
            Block(
                inputs if i == 0 else outputs, inner, outputs, span, 2 if index > 0 and i == 0 else 1,
                bottleneck=layout.bottleneck,
            )
            for i, span in enumerate(spans(kernels, layout.blocks[index], temporal_blocks))
        )
    )  # fmt: skip


def initialise(model: nn.Module, classifier: nn.Linear, *, zero_blocks: bool) -> None:
    """He et al.'s normal initialisation by fan-out; 0.01 for the classifier (arXiv 1812.03982, section 4).

    The published networks start their blocks as shortcuts. Shallow ones of basic blocks do not: they spend a third of a
    short training on waking up (docs/log.md, 2026-11-24).
    """
    if classifier.weight.is_meta:
        return  # there are no values, and to draw none takes seconds
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Block) and zero_blocks:
            module.start_as_shortcut()
        elif isinstance(module, NonLocal):
            nn.init.zeros_(module.norm.weight)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)


class ResNet3d(nn.Module):
    """A network of one pathway for clips of any number of frames and any size.

    Args:
        depth: a key of `LAYOUTS`; 50 and 101 are the published ones.
        width: channels of the stem.
        temporal_blocks: blocks of a stage after which all span one frame; 0 for none such.
        dropout: probability before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        architecture: Architecture,
        *,
        depth: int = 50,
        width: int = 64,
        temporal_blocks: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layout = LAYOUTS[depth]
        self.pool_frames = architecture.pool
        self.stem = Stem(width, architecture.stem)
        self.stages = nn.ModuleList()
        self.nonlocals = nn.ModuleDict()
        channels = width
        for index, kernels in enumerate(architecture.kernels):
            inner = width * 2**index
            self.stages.append(stage(channels, inner, layout, index, kernels, temporal_blocks))
            channels = inner * (4 if layout.bottleneck else 1)
            for block in architecture.nonlocal_after[index]:
                self.nonlocals[f"{index}_{block}"] = NonLocal(channels)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self, self.classifier, zero_blocks=layout.bottleneck)

    def features(self, clips_NCTHW: Tensor) -> Tensor:
        """The last stage's features [N, C, T', H', W'] of float clips [N, 3, T, H, W]."""
        x_NCTHW: Tensor = self.stem(clips_NCTHW)
        for index, blocks in enumerate(self.stages):
            assert isinstance(blocks, nn.Sequential)
            for number, block in enumerate(blocks):
                x_NCTHW = block(x_NCTHW)
                if (place := f"{index}_{number}") in self.nonlocals:
                    x_NCTHW = self.nonlocals[place](x_NCTHW)
            if index == 0:
                x_NCTHW = F.max_pool3d(x_NCTHW, (min(self.pool_frames, x_NCTHW.shape[2]), 1, 1))
        return x_NCTHW

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Logits [N, classes] of float clips [N, 3, T, H, W]."""
        logits: Tensor = self.classifier(self.dropout(self.features(clips_NCTHW).mean((2, 3, 4))))
        return logits
