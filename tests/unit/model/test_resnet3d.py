"""Slow, I3D and I3D non-local: their blocks against plain arithmetic, and every shape a schedule may ask for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mgray.model.resnet3d import ARCHITECTURES, Block, NonLocal, ResNet3d


def small(name: str, depth: int = 50, temporal_blocks: int = 0) -> ResNet3d:
    torch.manual_seed(0)
    return ResNet3d(3, ARCHITECTURES[name], depth=depth, width=4, temporal_blocks=temporal_blocks)


def spans(model: ResNet3d) -> list[list[int]]:
    """Frames that the first convolution of each block spans, for each stage."""
    return [[block.body[0].kernel_size[0] for block in blocks] for blocks in model.stages]


def test_temporal_kernels_are_the_published_ones() -> None:
    assert spans(small("slow")) == [[1] * 3, [1] * 4, [3] * 6, [3] * 3]
    assert spans(small("i3d")) == [[3] * 3, [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
    assert [small(name).stem[0].kernel_size[0] for name in ("slow", "i3d")] == [1, 5]
    assert spans(small("slow", 101, temporal_blocks=6))[2] == [3] * 6 + [1] * 17
    assert list(small("i3d_nln").nonlocals) == ["1_1", "1_3", "2_1", "2_3", "2_5"]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_frames_are_pooled_after_res2_where_they_are_published_to_be(name: str) -> None:
    assert small(name).features(torch.randn(1, 3, 8, 64, 64)).shape[2:] == (8 if name == "slow" else 4, 2, 2)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 16, 16), (3, 45, 23), (7, 33, 64)])
def test_any_clip_shape(name: str, shape: tuple[int, int, int]) -> None:
    assert small(name)(torch.randn(2, 3, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_parameter_is_trained(name: str) -> None:
    model = small(name)
    for module in model.modules():  # blocks that begin as shortcuts hide their convolutions from the gradient
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
    model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("shape", [(3, 4, 6), (2, 5, 3), (1, 1, 1)])
def test_a_nonlocal_block_is_softmax_attention_over_pooled_positions(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    block = NonLocal(6).double().eval()
    nn.init.normal_(block.norm.weight)
    block.norm.running_mean.normal_()
    block.norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, *shape, dtype=torch.float64)
    pool = nn.MaxPool3d((1, 2, 2)) if shape[1] > 1 else nn.Identity()

    def project(conv: nn.Conv3d, y: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,ncp->nop", conv.weight[:, :, 0, 0, 0], y.flatten(2)) + conv.bias[:, None]

    scores = torch.einsum("ncp,ncq->npq", project(block.theta, x), project(block.phi, pool(x))) / 3**0.5
    weights = scores.exp() / scores.exp().sum(2, keepdim=True)
    mean = torch.einsum("npq,ncq->ncp", weights, project(block.g, pool(x)))
    out = project(block.out, mean).view(x.shape)
    norm = block.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    want = x + out * scale.view(1, -1, 1, 1, 1) + (norm.bias - norm.running_mean * scale).view(1, -1, 1, 1, 1)
    torch.testing.assert_close(block(x), want)


def test_at_first_blocks_add_nothing() -> None:
    model = small("i3d_nln").eval()
    x = torch.randn(1, 32, 4, 4, 4)
    torch.testing.assert_close(model.nonlocals["1_1"](x), x)
    for module in model.modules():
        if isinstance(module, Block):
            assert (module.body[-1].weight == 0).all()
    assert all((module.bias == 0).all() for module in model.modules() if isinstance(module, nn.Conv3d) and module.bias is not None)  # fmt: skip


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_memory_formats_agree(name: str) -> None:
    model, clips = small(name).eval(), torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        want = model(clips)
        got = model.to(memory_format=torch.channels_last_3d)(clips.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
