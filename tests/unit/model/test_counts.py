"""Parameters and multiply-adds of the networks at their standard shapes, against the published ones.

FlopCounterMode counts two for a multiply-add; papers count one, and so do we here. It counts convolutions, products of
matrices and attention, not norms, activations and pooling: the network is without them here (tests/unit/model/test_flops.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from mgray.config import ModelSection
from mgray.model import MODELS
from mgray.model.flops import ModelCost

ROOT = Path(__file__).parents[3]

CLASSES = 400


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a network comes to, for 400 classes."""

    section: ModelSection
    clip: tuple[int, int, int]
    """Frames, height, width."""
    parameters_m: float
    gflops: float
    """Multiply-adds of a clip, times 1e-9."""
    published_m: float | None = None
    published_gflops: float | None = None


R101_50_50 = ModelSection(depth=101, fusion_kernel=5, temporal_blocks=6)
COUNTS = {
    # GFLOPs of SlowFast and Slow: arXiv 1812.03982; parameters, I3D and R101 101-101: PyTorchVideo's model
    # zoo, which counts norms and pooling too; I3D-NLN: arXiv 2004.04730
    "SlowFast R50 4x16": Count(
        section=ModelSection(alpha=8, fusion_kernel=5), clip=(32, 256, 256),
        parameters_m=34.48, gflops=36.10, published_m=34.48, published_gflops=36.1,
    ),
    "SlowFast R50 8x8": Count(
        section=ModelSection(), clip=(32, 256, 256),
        parameters_m=34.57, gflops=65.71, published_m=34.57, published_gflops=65.7,
    ),
    "SlowFast R50 16x8": Count(section=ModelSection(), clip=(64, 256, 256), parameters_m=34.57, gflops=131.42),
    "SlowFast R101 8x8, 50-50": Count(
        section=R101_50_50, clip=(32, 256, 256), parameters_m=53.77, gflops=106.51, published_m=53.77, published_gflops=106.0,
    ),
    "SlowFast R101 16x8, 50-50": Count(
        section=R101_50_50, clip=(64, 256, 256), parameters_m=53.77, gflops=213.02, published_m=53.77, published_gflops=213.0,
    ),
    "SlowFast R101 8x8, 101-101": Count(
        section=ModelSection(depth=101, fusion_kernel=5), clip=(32, 256, 256),
        parameters_m=62.83, gflops=125.91, published_m=62.83, published_gflops=127.2,
    ),
    "Slow R50 4x16": Count(
        section=ModelSection(name="slow"), clip=(4, 256, 256),
        parameters_m=32.45, gflops=27.26, published_m=32.45, published_gflops=27.3,
    ),
    "Slow R50 8x8": Count(
        section=ModelSection(name="slow"), clip=(8, 256, 256),
        parameters_m=32.45, gflops=54.52, published_m=32.45, published_gflops=54.5,
    ),
    "I3D R50 8x8": Count(
        section=ModelSection(name="i3d"), clip=(8, 256, 256),
        parameters_m=28.04, gflops=37.10, published_m=28.04, published_gflops=37.53,
    ),
    "I3D non-local R50 8x8": Count(
        section=ModelSection(name="i3d_nln"), clip=(8, 256, 256), parameters_m=35.4, gflops=48.91, published_m=35.3,
    ),
    # torchvision says these of its own (weights' meta), of clips of 16 frames
    **{
        name: Count(
            section=ModelSection(name=name), clip=(16, size, size), parameters_m=round(published_m, 2), gflops=round(published_gflops, 2),
            published_m=published_m, published_gflops=published_gflops,
        )
        for name, size, published_m, published_gflops in (
            ("r3d_18", 112, 33.371472, 40.697),
            ("mc3_18", 112, 11.69544, 43.343),
            ("r2plus1d_18", 112, 31.505325, 40.519),
            ("s3d", 224, 8.320048, 17.979),
            ("mvit_v1_b", 224, 36.610672, 70.599),
            ("mvit_v2_s", 224, 34.537744, 64.224),
            ("swin3d_t", 224, 28.15807, 43.882),
        )
    },
}  # fmt: skip


def test_every_model_is_counted() -> None:
    assert {count.section.name for count in COUNTS.values()} == set(MODELS)


@pytest.mark.parametrize("name", [name for name in COUNTS if name in MODELS])
def test_torchvision_s_figures_are_its_own(name: str) -> None:
    """They are counted in test_zoo.py."""
    meta = get_model_weights(name).DEFAULT.meta
    count = COUNTS[name]
    assert (meta["num_params"] / 1e6, meta["_ops"]) == (count.published_m, count.published_gflops)


@pytest.mark.parametrize("name", COUNTS)
def test_the_documents_have_these_figures(name: str) -> None:
    """The table of docs/your-model.md: parameters and GFLOPs, with the published ones behind them."""
    count = COUNTS[name]
    lines = [line for line in (ROOT / "docs" / "your-model.md").read_text().splitlines() if line.startswith("|")]
    (row,) = (line for line in lines if line.split("|")[1].strip(" `") == name)
    _, _, _, clip, parameters, gflops, _ = (cell.strip() for cell in row.split("|"))
    frames, height, _ = count.clip
    assert clip == f"{frames}x{height}²"
    for cell, found, published in (
        (parameters, count.parameters_m, count.published_m),
        (gflops, count.gflops, count.published_gflops),
    ):
        numbers = [float(number.strip("()")) for number in cell.split()]
        wanted = [found] if published is None else [found, published]
        assert numbers == pytest.approx(wanted, abs=0.051)


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in MODELS])
def test_parameters_and_multiply_adds(name: str) -> None:
    count = COUNTS[name]
    cost = ModelCost(count.section, CLASSES)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cost.counted_part(torch.empty(1, 3, *count.clip, device="meta"))
    parameters = sum(parameter.numel() for parameter in cost.model.parameters())
    assert round(parameters / 1e6, 2) == count.parameters_m
    assert round(counter.get_total_flops() / 2e9, 2) == count.gflops
    if count.published_m is not None:
        assert parameters / 1e6 == pytest.approx(count.published_m, rel=0.003)
    if count.published_gflops is not None:
        assert counter.get_total_flops() / 2e9 == pytest.approx(count.published_gflops, rel=0.013)
