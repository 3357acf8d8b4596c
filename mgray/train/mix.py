"""Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899) of the clips of a BN group.

As in torchvision.transforms.v2 a clip's partner is the one before it, and one draw holds for all of them; what is a batch there
is a BN group here. Groups are those of the global batch and positions number the sample stream, so that a clip
is mixed alike on any number of ranks. Where a group spans ranks, each hands its last clip to the next.

Shape suffixes: N clips of this rank, C colours, T frames, H height, W width, K classes, R ranks of a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mgray.config import TrainSection
from mgray.model.norm import BnGroups
from mgray.model.upload import uploaded

_STREAM = 0x6D6978
"""Keeps these draws apart from others of the same seed."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What the clips of a group get of their partners."""

    own: float
    """A clip's own part of its pixels (mixup) or of its area (CutMix), and of its label."""
    box: tuple[int, int, int, int] | None
    """Rows and columns (top, left, bottom, right) that are the partner's; None where all pixels are blended."""


def draw_mix(mixup: float, cutmix: float, seed: int, position: int, height: int, width: int) -> Mix:
    """The draw for the group whose first clip has this position in the sample stream.

    Args:
        mixup: alpha of Beta(alpha, alpha) for blending, 0 for none.
        cutmix: the same for boxes; with both, each is taken half of the time.
    """
    rng = np.random.default_rng([_STREAM, seed % (1 << 64), position])
    # of the 0, 1 or 2 kinds that are asked for, mixup is the first
    boxed = rng.random() * ((mixup > 0) + (cutmix > 0)) >= (mixup > 0)
    alpha = cutmix if boxed else mixup
    own = float(rng.beta(alpha, alpha))
    if not boxed:
        return Mix(own, None)
    x, y, reach = int(rng.integers(width)), int(rng.integers(height)), 0.5 * math.sqrt(1.0 - own)
    half_width, half_height = int(reach * width), int(reach * height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


@dataclass(frozen=True, slots=True)
class Targets:
    """What the logits of some clips are compared with."""

    labels_N: Tensor
    """A class each; [N, K] of 0 and 1 where clips show any number of K classes."""
    partners_N: Tensor | None = None
    """Labels of the clips' partners; None where nothing is mixed."""
    own_N: Tensor | None = None
    """Each clip's own part."""

    def loss(self, logits_NK: Tensor, label_smoothing: float) -> Tensor:
        """The sum of the clips' cross entropies, of multi-label clips the mean of the classes' binary ones (as PySlowFast's bce_logit).

        That of mixed labels is linear in the labels.
        """
        if self.labels_N.dim() > 1:
            return (
                F.binary_cross_entropy_with_logits(logits_NK, self._mixed_NK(logits_NK.dtype), reduction="none")
                .mean(1)
                .sum()
            )
        if self.partners_N is None or self.own_N is None:
            return F.cross_entropy(logits_NK, self.labels_N, reduction="sum", label_smoothing=label_smoothing)
        losses_2N = [
            F.cross_entropy(logits_NK, labels, reduction="none", label_smoothing=label_smoothing)
            for labels in (self.labels_N, self.partners_N)
        ]
        return (self.own_N * losses_2N[0] + (1.0 - self.own_N) * losses_2N[1]).sum()

    def num_right(self, logits_NK: Tensor) -> Tensor:
        """Clips whose best class is that, or one of those, of their larger part."""
        labels_N = self.labels_N
        if self.partners_N is not None and self.own_N is not None:
            larger_N = self.own_N >= 0.5
            labels_N = torch.where(larger_N[:, None] if labels_N.dim() > 1 else larger_N, labels_N, self.partners_N)
        if labels_N.dim() > 1:
            return labels_N.gather(1, logits_NK.argmax(1, keepdim=True)).sum()
        return (logits_NK.argmax(1) == labels_N).sum()

    def _mixed_NK(self, dtype: torch.dtype) -> Tensor:
        labels_NK = self.labels_N.to(dtype)
        if self.partners_N is None or self.own_N is None:
            return labels_NK
        own_N1 = self.own_N[:, None]
        return own_N1 * labels_NK + (1.0 - own_N1) * self.partners_N.to(dtype)


def mix_groups(
    clips_NCTHW: Tensor, labels_N: Tensor, groups: BnGroups, positions_G: list[int], train: TrainSection
) -> tuple[Tensor, Targets]:
    """The clips of some groups mixed with their partners, and what they are compared with.

    Args:
        positions_G: position in the sample stream of each group's first clip, on whichever rank that is.
    """
    height, width = clips_NCTHW.shape[3:]
    mixes = [draw_mix(train.mixup, train.cutmix, train.seed, position, height, width) for position in positions_G]
    parts = zip(
        torch.split(clips_NCTHW, list(groups.sizes)),
        torch.split(partners_of(clips_NCTHW, groups), list(groups.sizes)),
        mixes,
        strict=True,
    )
    own = [mix.own for mix, size in zip(mixes, groups.sizes, strict=True) for _ in range(size)]
    own_N = uploaded(torch.tensor(own, dtype=clips_NCTHW.dtype), clips_NCTHW.device)
    targets = Targets(labels_N, partners_of(labels_N, groups), own_N)
    return torch.cat([mixed(clips, partners, mix) for clips, partners, mix in parts]), targets


def mixed(clips_NCTHW: Tensor, partners_NCTHW: Tensor, mix: Mix) -> Tensor:
    """Clips with their partners' part in them."""
    if mix.box is None:
        return clips_NCTHW * mix.own + partners_NCTHW * (1.0 - mix.own)
    top, left, bottom, right = mix.box
    output = clips_NCTHW.clone()
    output[..., top:bottom, left:right] = partners_NCTHW[..., top:bottom, left:right]
    return output


def partners_of(values_N: Tensor, groups: BnGroups) -> Tensor:
    """For each clip of this rank the value of the one before it in its group; the first has the group's last.

    A collective over the group's ranks where it spans several.
    """
    if groups.process_group is None:
        return torch.cat([part.roll(1, 0) for part in torch.split(values_N, list(groups.sizes))])
    last = values_N[-1].contiguous()
    rows_R = [torch.empty_like(last) for _ in range(groups.process_group.size())]
    dist.all_gather(rows_R, last, group=groups.process_group)
    before = rows_R[groups.process_group.rank() - 1]  # of the first rank: the last one's
    return torch.cat([before.unsqueeze(0), values_N[:-1]])
