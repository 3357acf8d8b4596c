"""RandAugment (Cubuk et al., arXiv 1909.13719) of whole clips: one draw for all frames of a clip, by its place in the sample stream.

Operations and their ranges are those of torchvision.transforms.v2.RandAugment with its 31 magnitudes; two are applied in turn.

Shape suffixes: N clips, T frames, H height, W width, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

OPERATIONS_PER_CLIP = 2
MAX_MAGNITUDE = 30
_STREAM = 0x617567
"""Keeps these draws apart from others of the same seed."""


def _sheared(clip_TCHW: Tensor, x: float, y: float) -> Tensor:
    angles = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    moved: Tensor = F.affine(clip_TCHW, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0, 0])
    return moved


def _translated(clip_TCHW: Tensor, x: float, y: float) -> Tensor:
    moved: Tensor = F.affine(clip_TCHW, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])
    return moved


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda clip, level: clip,
    "ShearX": lambda clip, level: _sheared(clip, 0.3 * level, 0.0),
    "ShearY": lambda clip, level: _sheared(clip, 0.0, 0.3 * level),
    "TranslateX": lambda clip, level: _translated(clip, 150.0 / 331.0 * clip.shape[-1] * level, 0.0),
    "TranslateY": lambda clip, level: _translated(clip, 0.0, 150.0 / 331.0 * clip.shape[-2] * level),
    "Rotate": lambda clip, level: F.rotate(clip, angle=30.0 * level),
    "Brightness": lambda clip, level: F.adjust_brightness(clip, 1.0 + 0.9 * level),
    "Color": lambda clip, level: F.adjust_saturation(clip, 1.0 + 0.9 * level),
    "Contrast": lambda clip, level: F.adjust_contrast(clip, 1.0 + 0.9 * level),
    "Sharpness": lambda clip, level: F.adjust_sharpness(clip, 1.0 + 0.9 * level),
    "Posterize": lambda clip, level: F.posterize(clip, bits=8 - round(4.0 * abs(level))),
    "Solarize": lambda clip, level: F.solarize(clip, threshold=255.0 * (1.0 - abs(level))),
    "AutoContrast": lambda clip, level: F.autocontrast(clip),
    "Equalize": lambda clip, level: F.equalize(clip),
}
"""By torchvision's names; of a clip uint8 [T, C, H, W] and a level in [-1, 1]."""


def draw_operations(seed: int, position: int) -> list[tuple[str, int]]:
    """Names and signs of the operations of the clip at a position in the sample stream."""
    rng = np.random.default_rng([_STREAM, seed % (1 << 64), position])
    names = list(OPERATIONS)
    return [(names[rng.integers(len(names))], 1 if rng.random() < 0.5 else -1) for _ in range(OPERATIONS_PER_CLIP)]


def augmented(clips_NTHWC: Tensor, positions_N: Sequence[int], seed: int, magnitude: float) -> Tensor:
    """Clips, uint8, each changed by its own draw.

    Args:
        magnitude: strength in [0, `MAX_MAGNITUDE`].
    """
    clips = []
    for clip_THWC, position in zip(clips_NTHWC, positions_N, strict=True):
        clip_TCHW = clip_THWC.permute(0, 3, 1, 2)
        for name, sign in draw_operations(seed, int(position)):
            clip_TCHW = OPERATIONS[name](clip_TCHW, sign * magnitude / MAX_MAGNITUDE)
        clips.append(clip_TCHW.permute(0, 2, 3, 1))
    return torch.stack(clips).contiguous()
