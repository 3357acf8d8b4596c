"""Video models and the batch norm that multigrid training needs.

Importing this package loads no torch, so that a command can refuse a bad model section before torch or Ray start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mgray.config import ModelSection
from mgray.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_ALL_DEPTHS = (10, 18, 34, 50, 101)
DEPTHS = {"slowfast": _ALL_DEPTHS, "slow": _ALL_DEPTHS, "i3d": _ALL_DEPTHS, "i3d_nln": (50, 101)}
"""Layers that a network of ours may have; 50 and 101 are the published ones."""


def _slowfast(section: ModelSection, num_classes: int) -> nn.Module:
    from mgray.model.slowfast import SlowFast

    return SlowFast(
        num_classes,
        depth=section.depth,
        width=section.width,
        alpha=section.alpha,
        beta_inv=section.beta_inv,
        fusion_kernel=section.fusion_kernel,
        sampling=section.slow_frames,
        temporal_blocks=section.temporal_blocks,
        dropout=section.dropout,
    )


def _resnet3d(section: ModelSection, num_classes: int) -> nn.Module:
    from mgray.model.resnet3d import ARCHITECTURES, ResNet3d

    return ResNet3d(
        num_classes,
        ARCHITECTURES[section.name],
        depth=section.depth,
        width=section.width,
        temporal_blocks=section.temporal_blocks,
        dropout=section.dropout,
    )


def _torchvision(section: ModelSection, num_classes: int) -> nn.Module:
    from mgray.model.zoo import torchvision_model

    return torchvision_model(section.name, num_classes, dropout=section.dropout)


MODELS: dict[str, Callable[[ModelSection, int], nn.Module]] = {
    "slowfast": _slowfast,
    "slow": _resnet3d,
    "i3d": _resnet3d,
    "i3d_nln": _resnet3d,
    "r3d_18": _torchvision,
    "mc3_18": _torchvision,
    "r2plus1d_18": _torchvision,
    "s3d": _torchvision,
    "mvit_v1_b": _torchvision,
    "mvit_v2_s": _torchvision,
    "swin3d_t": _torchvision,
}
"""Every model by its name in `model.name`; input float [N, 3, T, H, W], output logits [N, classes]."""


def check_model(section: ModelSection) -> None:
    """Refuse a model that cannot be built, without loading torch.

    Raises:
        ConfigError: unknown name, a depth that the network does not have, a width that `beta_inv` does not divide.
    """
    if section.name not in MODELS:
        raise ConfigError("model.name", section.name, "is no known model", f"use one of {', '.join(MODELS)}")
    depths = DEPTHS.get(section.name, (section.depth,))
    if section.depth not in depths:
        raise ConfigError(
            "model.depth", section.depth, f"is no depth of {section.name}", f"use one of {', '.join(map(str, depths))}"
        )
    if section.name == "slowfast" and section.width % section.beta_inv:
        raise ConfigError(
            "model.width", section.width, f"is no multiple of model.beta_inv = {section.beta_inv}",
            f"use e.g. {max(1, round(section.width / section.beta_inv)) * section.beta_inv}",
        )  # fmt: skip


def build_model(section: ModelSection, num_classes: int) -> nn.Module:
    """The model with fresh weights, its batch norms grouped.

    Raises:
        ConfigError: see `check_model`.
    """
    check_model(section)
    from mgray.model.norm import convert_batchnorm

    return convert_batchnorm(MODELS[section.name](section, num_classes))
