"""torchvision's video networks with fresh weights, for clips of any shape; state dicts are torchvision's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models.video import mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t

from mgray.model.positions import accept_any_shape

_RESIDUAL: dict[str, Callable[..., nn.Module]] = {"r3d_18": r3d_18, "mc3_18": mc3_18, "r2plus1d_18": r2plus1d_18}
"""Tran et al., arXiv 1711.11248."""
_WITH_DROPOUT: dict[str, Callable[..., nn.Module]] = {"s3d": s3d, "mvit_v1_b": mvit_v1_b, "mvit_v2_s": mvit_v2_s}
"""Xie et al., arXiv 1712.04851; Fan et al., 2104.11227; Li et al., 2112.01526."""


def torchvision_model(name: str, num_classes: int, *, dropout: float) -> nn.Module:
    """The network `name` with dropout before its classifier; it takes clips of any number of frames and any size."""
    if name in _WITH_DROPOUT:
        return accept_any_shape(_WITH_DROPOUT[name](weights=None, num_classes=num_classes, dropout=dropout))
    if name in _RESIDUAL:
        model: nn.Module = _RESIDUAL[name](weights=None)
        model.fc = nn.Linear(512, num_classes)
    else:
        model = swin3d_t(weights=None, num_classes=num_classes)  # Liu et al., arXiv 2106.13230
    # behind the pooling rather than in the classifier, whose names in the state dict would change
    model.avgpool = nn.Sequential(model.get_submodule("avgpool"), nn.Dropout(dropout))
    return accept_any_shape(model)
