"""What a network costs: operations of a clip, forward and backward, its parameters and its batch norms."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mgray.config import ModelSection
from mgray.model import build_model
from mgray.model.norm import GroupedBatchNorm3d
from mgray.plan import ClipShape

CLIPS = 2
"""Counted at once: one clip of a tiny shape is too few for batch norm."""


@dataclass(frozen=True)
class ModelCost:
    """A network on meta tensors, which have shapes and no values."""

    section: ModelSection
    num_classes: int
    _flops: dict[ClipShape, float] = field(default_factory=dict)

    @functools.cached_property
    def model(self) -> nn.Module:
        with torch.device("meta"):
            return build_model(self.section, self.num_classes).train()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def norm_layers(self) -> int:
        return sum(isinstance(module, GroupedBatchNorm3d) for module in self.model.modules())

    def clip_flops(self, shape: ClipShape) -> float:
        """Operations of one clip in training, two for a multiply-add: convolutions, products of matrices and attention."""
        if shape not in self._flops:
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                clips = torch.empty(CLIPS, 3, shape.frames, shape.height, shape.width)
                self.model(clips).sum().backward()
            self._flops[shape] = counter.get_total_flops() / CLIPS
        return self._flops[shape]
