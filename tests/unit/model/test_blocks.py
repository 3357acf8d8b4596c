"""Stem, residual blocks, lateral connections and non-local blocks against arithmetic in float64 with batch statistics: outputs and all gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mgray.model.resnet3d import Block, NonLocal, Stem
from mgray.model.slowfast import Lateral

Weights = dict[str, Tensor]


def conv(x: Tensor, weight: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """A convolution that keeps the size but for its stride: a sum over the kernel's places."""
    sizes, frames = weight.shape[2:], x.shape[2:]
    padded = x.new_zeros(*x.shape[:2], *(size + 2 * (kernel // 2) for size, kernel in zip(frames, sizes, strict=True)))
    inner = tuple(slice(kernel // 2, kernel // 2 + size) for size, kernel in zip(frames, sizes, strict=True))
    padded[(..., *inner)] = x
    total: Tensor | float = 0.0
    for place in itertools.product(*map(range, sizes)):
        seen = tuple(slice(at, at + size, step) for at, size, step in zip(place, frames, stride, strict=True))
        total = total + torch.einsum("oc,ncthw->nothw", weight[(..., *place)], padded[(..., *seen)])
    assert isinstance(total, Tensor)
    return total


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    mean = x.mean((0, 2, 3, 4), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3, 4), keepdim=True)
    place = (1, -1, 1, 1, 1)
    return (x - mean) / (var + 1e-5) ** 0.5 * weights[f"{name}.weight"].view(place) + weights[f"{name}.bias"].view(
        place
    )


def positive(x: Tensor) -> Tensor:
    return x * (x > 0)


def shortcut(x: Tensor, weights: Weights, stride: int) -> Tensor:
    if "shortcut.0.weight" not in weights:
        return x
    return norm(conv(x, weights["shortcut.0.weight"], (1, stride, stride)), weights, "shortcut.1")


def bottleneck(x: Tensor, weights: Weights, stride: int) -> Tensor:
    y = positive(norm(conv(x, weights["body.0.weight"]), weights, "body.1"))
    y = positive(norm(conv(y, weights["body.3.weight"], (1, stride, stride)), weights, "body.4"))
    y = norm(conv(y, weights["body.6.weight"]), weights, "body.7")
    return positive(shortcut(x, weights, stride) + y)


def basic(x: Tensor, weights: Weights, stride: int) -> Tensor:
    y = positive(norm(conv(x, weights["body.0.weight"], (1, stride, stride)), weights, "body.1"))
    y = norm(conv(y, weights["body.3.weight"]), weights, "body.4")
    return positive(shortcut(x, weights, stride) + y)


def stem(x: Tensor, weights: Weights) -> Tensor:
    y = positive(norm(conv(x, weights["0.weight"], (1, 2, 2)), weights, "1"))
    rows = [y[..., max(0, 2 * i - 1) : 2 * i + 2, :].amax(3) for i in range(-(-y.shape[3] // 2))]
    y = torch.stack(rows, 3)
    return torch.stack([y[..., max(0, 2 * i - 1) : 2 * i + 2].amax(4) for i in range(-(-y.shape[4] // 2))], 4)


def lateral(x: Tensor, weights: Weights, frames: list[int]) -> Tensor:
    return positive(norm(conv(x, weights["conv.weight"])[:, :, frames], weights, "norm"))


def non_local(x: Tensor, weights: Weights) -> Tensor:
    def project(y: Tensor, name: str) -> Tensor:
        return conv(y, weights[f"{name}.weight"]) + weights[f"{name}.bias"].view(1, -1, 1, 1, 1)

    rows, columns = x.shape[3] // 2, x.shape[4] // 2
    pooled = x[..., : 2 * rows, : 2 * columns].unflatten(4, (columns, 2)).unflatten(3, (rows, 2)).amax((4, 6))
    scores = torch.einsum("ncp,ncq->npq", project(x, "theta").flatten(2), project(pooled, "phi").flatten(2))
    powers = (scores / (x.shape[1] // 2) ** 0.5).exp()
    mean = torch.einsum("npq,ncq->ncp", powers / powers.sum(2, keepdim=True), project(pooled, "g").flatten(2))
    return x + norm(project(mean.unflatten(2, x.shape[2:]), "out"), weights, "norm")


def block(inputs: int, outputs: int, frames: int, stride: int, *, bottleneck: bool) -> Block:
    return Block(inputs, 4, outputs, frames, stride, bottleneck=bottleneck)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Weights], Tensor], tuple[int, ...]]] = {
    "bottleneck": (lambda: block(6, 6, 3, 1, bottleneck=True), lambda x, w: bottleneck(x, w, 1), (2, 6, 3, 5, 4)),
    "bottleneck, half the size": (
        lambda: block(3, 8, 1, 2, bottleneck=True),
        lambda x, w: bottleneck(x, w, 2),
        (2, 3, 3, 5, 6),
    ),
    "basic": (lambda: block(4, 4, 3, 1, bottleneck=False), lambda x, w: basic(x, w, 1), (2, 4, 3, 5, 4)),
    "basic, half the size": (
        lambda: block(3, 4, 1, 2, bottleneck=False),
        lambda x, w: basic(x, w, 2),
        (2, 3, 3, 5, 6),
    ),
    "stem": (lambda: Stem(4, 5), stem, (2, 3, 4, 11, 14)),
    "stem of one frame": (lambda: Stem(4, 1), stem, (2, 3, 2, 12, 9)),
    "lateral, centred": (lambda: Lateral(3, 5, 4), lambda x, w: lateral(x, w, [1, 5, 9]), (2, 3, 11, 2, 3)),
    "lateral, from the first": (
        lambda: Lateral(3, 7, 4, 0),
        lambda x, w: lateral(x, w, [0, 4, 8]),
        (2, 3, 11, 2, 3),
    ),
    "non-local": (lambda: NonLocal(6), non_local, (2, 6, 2, 4, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_float64(name: str) -> None:
    make, reference, shape = CASES[name]
    torch.manual_seed(0)
    module = make().double().train()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = {key: value.detach().clone().requires_grad_() for key, value in module.named_parameters()}
    got, want = module(x.clone()), reference(x, weights)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    probe = torch.randn_like(want)
    ours = torch.autograd.grad(got, [x, *module.parameters()], probe)
    theirs = torch.autograd.grad(want, [x, *weights.values()], probe)
    for key, mine, other in zip(("x", *weights), ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
        assert mine.abs().max() > 1e-6 or key.endswith("bias"), key
