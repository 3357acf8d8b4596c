"""torchvision's video networks made to take clips of any T, H, W: positions and windows follow the shape of each clip.

torchvision builds them for one shape: position embeddings of one size (MViT), windows whose positions are numbered for
their full size (Swin), pooling over fixed sizes (S3D). The classes here override just that. At the shape a network was built for
they compute what torchvision computes, and the state dict is torchvision's at any shape.

Shape suffixes: N clips, C channels, T frames, H height, W width, L tokens of a clip with its class token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.mvit import MViT, PositionalEncoding
from torchvision.models.video.s3d import S3D
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d


def resized(table: Tensor, size: tuple[int, ...]) -> Tensor:
    """A table [*old size, C] of one or two dimensions, interpolated linearly to [*size, C].

    The ends of table and result lie upon each other, since a coarse and a fine clip show the same stretch of video.
    """
    if tuple(table.shape[:-1]) == size:
        return table
    mode = {1: "linear", 2: "bilinear"}[len(size)]
    # [*size, C] -> [1, C, *size] and back
    return F.interpolate(table.movedim(-1, 0).unsqueeze(0), size, mode=mode).squeeze(0).movedim(0, -1)


class AnyShapeEncoding(PositionalEncoding):  # type: ignore[misc]
    """`PositionalEncoding` whose embeddings of frames and of places are resized to the tokens of a clip."""

    def at(self, thw: tuple[int, int, int]) -> Tensor | None:
        """Embeddings [L, C] of the class token and of T x H x W tokens; None where positions are relative (MViTv2)."""
        if self.spatial_pos is None:
            return None
        time_TC = resized(self.temporal_pos, thw[:1])
        space_HWC = resized(self.spatial_pos.unflatten(0, self.spatial_size), thw[1:])
        # [T, 1, 1, C] + [H, W, C] -> [T * H * W, C]
        places = (time_TC[:, None, None] + space_HWC).flatten(0, 2)
        return torch.cat([self.class_pos.unsqueeze(0), places])

    def forward(self, x_NLC: Tensor, thw: tuple[int, int, int]) -> Tensor:
        """Tokens [N, T * H * W, C] with the class token before them and positions added."""
        x_NLC = torch.cat([self.class_token.expand(x_NLC.shape[0], 1, -1), x_NLC], dim=1)
        places = self.at(thw)
        return x_NLC if places is None else x_NLC + places


class AnyShapeMViT(MViT):  # type: ignore[misc]
    """`MViT` (Fan et al., arXiv 2104.11227; Li et al., arXiv 2112.01526) that takes the number of tokens from the clips.

    The relative tables of MViTv2 are interpolated by torchvision, to the tokens that each block is told.
    """

    def forward(self, clips_NCTHW: Tensor) -> Tensor:
        """Logits [N, classes] of float clips [N, 3, T, H, W]."""
        patches_NCTHW = self.conv_proj(clips_NCTHW)
        _, _, frames, height, width = patches_NCTHW.shape
        thw = (frames, height, width)
        x_NLC = self.pos_encoding(patches_NCTHW.flatten(2).transpose(1, 2), thw)
        for block in self.blocks:
            x_NLC, thw = block(x_NLC, thw)
        logits: Tensor = self.head(self.norm(x_NLC)[:, 0])
        return logits


class AnyShapeWindowAttention(ShiftedWindowAttention3d):  # type: ignore[misc]
    """`ShiftedWindowAttention3d` (Liu et al., arXiv 2106.13230) whose bias is right in windows cut down to a small clip.

    torchvision shrinks and pads windows to the clip, and does not shift what fits in one. But it takes the first rows of
    the full window's offsets, which are those of the smaller one only where just its frames are fewer.
    """

    def get_relative_position_bias(self, window_size: list[int]) -> Tensor:
        """The bias [1, heads, tokens, tokens] of a window of T, H, W tokens, none above the full window's."""
        full, volume = self.window_size, window_size[0] * window_size[1] * window_size[2]
        # [tokens, tokens] of the full window -> [T, H, W, T, H, W], cut to the small one
        index = self.relative_position_index.view(*full, *full)
        frames, height, width = (slice(size) for size in window_size)
        index = index[frames, height, width, frames, height, width].reshape(-1)
        bias: Tensor = self.relative_position_bias_table[index].view(volume, volume, -1)
        return bias.permute(2, 0, 1).unsqueeze(0)


def _fitting(kernel: tuple[int, int, int], x_NCTHW: Tensor) -> tuple[int, int, int]:
    """A pooling kernel cut down to the clip."""
    frames, height, width = x_NCTHW.shape[2:]
    return min(kernel[0], frames), min(kernel[1], height), min(kernel[2], width)


class FittingMaxPool(nn.MaxPool3d):
    """`nn.MaxPool3d` without padding, over as much as there is where a clip is smaller than its kernel."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool3d(input, _fitting(nn.modules.utils._triple(self.kernel_size), input), self.stride)


class FittingAvgPool(nn.AvgPool3d):
    """`nn.AvgPool3d` without padding, over as much as there is where a clip is smaller than its kernel."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool3d(input, _fitting(nn.modules.utils._triple(self.kernel_size), input), self.stride)


def accept_any_shape(model: nn.Module) -> nn.Module:
    """Let one of torchvision's video networks take any shape, in place; parameters and buffers stay the same objects.

    Its residual networks already do.
    """
    for module in model.modules():
        if type(module) is MViT:
            module.__class__ = AnyShapeMViT
        elif type(module) is PositionalEncoding:
            module.__class__ = AnyShapeEncoding
        elif type(module) is ShiftedWindowAttention3d:
            module.__class__ = AnyShapeWindowAttention
        elif type(module) is S3D:
            _fit_pools(module)
    return model


def _fit_pools(model: nn.Module) -> None:
    for pool in model.modules():
        if type(pool) is nn.AvgPool3d:
            pool.__class__ = FittingAvgPool
        elif type(pool) is nn.MaxPool3d and pool.padding in (0, (0, 0, 0)):
            pool.__class__ = FittingMaxPool
