"""torchvision's residual video networks (Tran et al., arXiv 1711.11248), with fresh weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models.video import VideoResNet, mc3_18, r2plus1d_18, r3d_18

_BUILDERS: dict[str, Callable[..., VideoResNet]] = {"r3d_18": r3d_18, "mc3_18": mc3_18, "r2plus1d_18": r2plus1d_18}


def torchvision_model(name: str, num_classes: int, *, dropout: float) -> nn.Module:
    """The network `name` with dropout before its classifier; it takes clips of any number of frames and any size."""
    model: nn.Module = _BUILDERS[name](weights=None)
    model.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, num_classes))
    return model
