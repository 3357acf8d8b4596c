"""Networks of full size without the seconds that drawing their weights takes, for tests to which the values do not matter or that load others."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from mgray.config import ModelSection
from mgray.model import build_model

_DRAWS = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]


def undrawn(section: ModelSection, num_classes: int) -> nn.Module:
    """The model of a section, whose weights are whatever the memory held."""

    def left(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        for name in _DRAWS:
            patch.setattr(nn.init, name, left)
        return build_model(section, num_classes)
