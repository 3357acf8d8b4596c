"""SlowFast against the published sizes, and on every shape a schedule may ask for."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mgray.model.convert import from_pyslowfast
from mgray.model.slowfast import Lateral, SlowFast, slow_frames
from tests.support import pyslowfast
from tests.support.networks import undrawn
from tests.support.pyslowfast import random_state, shapes


def small(**fields: int) -> SlowFast:
    torch.manual_seed(0)
    return SlowFast(3, **{"depth": 10, "width": 8, "beta_inv": 4, **fields})


def test_resnet50_8x8_has_the_published_parameters_and_flops() -> None:
    with torch.device("meta"):
        model = SlowFast(400, depth=50, width=64, alpha=4, beta_inv=8, fusion_kernel=7)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, 32, 256, 256))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 34.6
    assert round(counter.get_total_flops() / 2e9, 1) == 65.7  # the paper counts multiply-adds


def test_depth_101_is_the_deeper_bottleneck_network() -> None:
    with torch.device("meta"):
        model = SlowFast(400, depth=101)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 62.9


@pytest.mark.parametrize("alpha", [1, 2, 3, 4, 8])
def test_slow_frames_are_centred_at_a_stride_of_alpha(alpha: int) -> None:
    for frames in range(1, 40):
        chosen = list(slow_frames(frames, alpha))
        assert len(chosen) == max(1, -(-frames // alpha))
        assert chosen[0] >= 0 and chosen[-1] < frames
        assert all(after - before == alpha for before, after in itertools.pairwise(chosen))
        assert abs(chosen[0] - (frames - 1 - chosen[-1])) <= 1


@pytest.mark.parametrize("kernel", [1, 3, 4, 5, 7])
def test_lateral_connections_are_centred_on_the_slow_frames(kernel: int) -> None:
    lateral = Lateral(1, kernel, alpha=4).eval()
    nn.init.zeros_(lateral.conv.weight)
    lateral.conv.weight.data[:, :, kernel // 2] = 1.0
    for frames in range(1, 20):
        clip = torch.arange(1.0, frames + 1).view(1, 1, frames, 1, 1)
        want = torch.tensor([float(frame + 1) for frame in slow_frames(frames, 4)])
        torch.testing.assert_close(lateral(clip)[0, 0, :, 0, 0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_every_depth_trains(depth: int) -> None:
    model = small(depth=depth)
    logits = model(torch.randn(2, 3, 4, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("size", [(32, 32), (45, 23)])
def test_any_clip_shape(frames: int, size: tuple[int, int]) -> None:
    assert small(alpha=4)(torch.randn(2, 3, frames, *size)).shape == (2, 3)


def test_memory_formats_agree() -> None:
    model, clips = small().eval(), torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        want = model(clips)
        got = model.to(memory_format=torch.channels_last_3d)(clips.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "weight"), [(10, 1.0), (50, 0.0)])
def test_bottlenecks_begin_as_their_shortcut_and_basic_blocks_do_not(depth: int, weight: float) -> None:
    model = small(depth=depth)
    for stage in [*model.slow_stages, *model.fast_stages]:
        for block in stage:
            assert (block.body[-1].weight == weight).all()
    assert 0.005 < model.classifier.weight.std() < 0.02


@pytest.mark.parametrize("frames", [16, 7, 2])
def test_logits_and_gradients_of_centred_frames_equal_float64(frames: int) -> None:
    """Of the network that trains by default, in evaluation, against functions of the published names."""
    state = random_state(shapes("slowfast", width=8, beta_inv=4, classes=5))
    weights = from_pyslowfast({"model_state": state}, "", "test")
    model = undrawn(dataclasses.replace(weights.section, slow_frames="centred"), 5).double().eval()
    model.load_state_dict(weights.state)
    clips = torch.randn(2, 3, frames, 32, 24, dtype=torch.float64, requires_grad=True)
    got, want = model(clips), pyslowfast.forward(state, clips, "slowfast", centred=True)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad(logits, clips, probe)[0] for logits in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert want.std() > 0.1 and ours.abs().max() > 1e-3
