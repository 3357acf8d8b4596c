"""Models by name."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

from mgray.config import ModelSection
from mgray.errors import ConfigError
from mgray.model import DEPTHS, MODELS, build_model, check_model
from mgray.model.norm import GroupedBatchNorm3d
from mgray.model.resnet3d import LAYOUTS
from tests.support.networks import undrawn


@functools.cache
def small(name: str) -> nn.Module:
    return undrawn(ModelSection(name=name, depth=DEPTHS.get(name, (10,))[0], width=8, beta_inv=4, dropout=0.3), 5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_takes_the_schedule_s_shapes_and_has_grouped_norms(name: str) -> None:
    model = small(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert bool(norms) == (not name.startswith(("mvit", "swin")))
    assert all(type(norm) is GroupedBatchNorm3d for norm in norms)
    for frames in (2, 4, 8):
        assert model(torch.randn(2, 3, frames, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_dropout_is_the_section_s(name: str) -> None:
    assert [module.p for module in small(name).modules() if isinstance(module, nn.Dropout) and module.p] == [0.3]


def test_depths_known_without_torch_are_those_that_can_be_built() -> None:
    for depths in DEPTHS.values():
        assert set(depths) <= set(LAYOUTS)
    assert set(DEPTHS["slowfast"]) == set(LAYOUTS)


@pytest.mark.parametrize(
    ("section", "field", "said"),
    [
        (ModelSection(name="slowfats"), "model.name", "slowfast, slow, i3d"),
        (ModelSection(depth=51), "model.depth", "10, 18, 34, 50, 101"),
        (ModelSection(name="i3d_nln", depth=18), "model.depth", "use one of 50, 101"),
        (ModelSection(width=20), "model.width", "multiple of model.beta_inv = 8"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(section: ModelSection, field: str, said: str) -> None:
    for refuse in (check_model, lambda section: build_model(section, 5)):
        with pytest.raises(ConfigError, match=said) as caught:
            refuse(section)
        assert caught.value.field == field


def test_checking_a_model_loads_no_torch() -> None:
    code = (
        "import sys; from mgray.config import ModelSection; from mgray.model import check_model; "
        "check_model(ModelSection()); assert not {'torch', 'torchvision', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
